// The comparison of runtime/contract/comparison.py: the same figures, in float64, and the same verdicts.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <limits>
#include <numeric>

#include "contract/npy.hpp"
#include "itae/golden.hpp"

namespace itae {
namespace {

using Outputs = std::map<std::string, Array>;
using Samples = std::vector<std::int64_t>;

constexpr double nan = std::numeric_limits<double>::quiet_NaN();
constexpr double infinity = std::numeric_limits<double>::infinity();

/// A number as Python shows it.
std::string text(const char* form, double value) {
    if (std::isnan(value)) return "nan";
    std::array<char, 400> buffer{};
    std::snprintf(buffer.data(), buffer.size(), form, value);
    return buffer.data();
}

/// The larger number; NaN counts as larger than every number, so that no comparison loses it.
double worst(double one, double other) { return std::isnan(one) || std::isnan(other) ? nan : std::max(one, other); }

const Array* find(const Outputs& got, const std::string& name) {
    const auto found = got.find(name);
    return found == got.end() ? nullptr : &found->second;
}

bool is_finite(const Array& array) {
    const float* values = array.as<float>();
    return std::all_of(values, values + array.count(), [](float value) { return std::isfinite(value); });
}

struct Figures {
    double max_abs = 0;
    double min_cosine = 1;
    double max_relative = 0;
};

class Comparison {
  public:
    Comparison(const Outputs& got, const Golden& golden, const ParityLimits& limits)
        : got_(got),
          golden_(golden),
          limits_(limits),
          mask_(find(got, "artifact_mask")),
          layers_(static_cast<std::size_t>(golden.flags.shape[1])),
          patches_(static_cast<std::size_t>(golden.flags.shape[2])) {}

    Parity run() {
        Parity parity{nan, nan, nan, nan, mask_ != nullptr, 0, {}, {}, incomparable()};
        if (!parity.failures.empty()) return parity;
        for (const auto& [name, array] : got_) {
            if (array.dtype == "float32" && !is_finite(array))
                parity.failures.push_back(name + " holds NaN or infinity");
        }
        parity.borderline = mask_ != nullptr ? borderline(parity.failures) : unclear();
        parity.left_out = farthest(parity.borderline);
        parity.left_out.resize(std::min(parity.left_out.size(), static_cast<std::size_t>(golden_.samples() / 2)));
        std::sort(parity.left_out.begin(), parity.left_out.end());
        Samples kept;
        for (std::int64_t sample = 0; sample < golden_.samples(); ++sample) {
            if (!std::binary_search(parity.left_out.begin(), parity.left_out.end(), sample)) kept.push_back(sample);
        }
        const Figures found = figures(kept);
        parity.max_abs = found.max_abs;
        parity.min_cosine = found.min_cosine;
        parity.max_relative = found.max_relative;
        parity.norm_relative = norm_figure(kept);
        if (limits_.max_abs && !(parity.max_abs <= *limits_.max_abs)) {
            parity.failures.push_back("max abs " + text("%.3g", parity.max_abs) + " is over the limit " +
                                      text("%g", *limits_.max_abs));
        }
        if (limits_.min_cosine && !(parity.min_cosine >= *limits_.min_cosine)) {
            parity.failures.push_back("cosine " + text("%.7f", parity.min_cosine) + " is under the limit " +
                                      text("%g", *limits_.min_cosine));
        }
        if (limits_.max_relative && !(parity.max_relative <= *limits_.max_relative)) {
            parity.failures.push_back(worst_own(kept) + " is off by " + text("%.3g", parity.max_relative) +
                                      " of its largest number, limit " + text("%g", *limits_.max_relative));
        }
        if (limits_.flag_margin && !(parity.norm_relative <= *limits_.flag_margin)) {
            parity.failures.push_back("artifact_norm is off by " + text("%.3g", parity.norm_relative) +
                                      " of itself, limit " + text("%g", *limits_.flag_margin));
        }
        if (mask_ != nullptr) {
            for (std::size_t index = 0; index < mask_->count(); ++index)
                parity.flags_differing += differs(index) ? 1 : 0;
        }
        return parity;
    }

  private:
    /// The reasons why the outputs can't be compared.
    std::vector<std::string> incomparable() const {
        std::vector<std::string> reasons;
        for (const auto& [name, array] : got_) {
            const Array* expected = golden_.output(name);
            if (expected == nullptr) {
                reasons.push_back(name + " is not in the golden sample");
            } else if (array.shape != expected->shape) {
                reasons.push_back(name + " has shape " + shape_text(array.shape) + ", expected " +
                                  shape_text(expected->shape));
            } else if (array.dtype != expected->dtype) {
                reasons.push_back(name + " is " + array.dtype + ", expected " + expected->dtype);
            }
        }
        if (got_.empty()) reasons.emplace_back("there is no output to compare");
        return reasons;
    }

    bool differs(std::size_t index) const {
        return (mask_->as<std::uint8_t>()[index] != 0) != (golden_.flags.as<std::uint8_t>()[index] != 0);
    }

    bool layer_differs(std::int64_t sample, std::size_t layer) const {
        if (mask_ == nullptr) return false;
        const std::size_t first = (static_cast<std::size_t>(sample) * layers_ + layer) * patches_;
        for (std::size_t index = first; index < first + patches_; ++index) {
            if (differs(index)) return true;
        }
        return false;
    }

    /// The samples whose flags differ only inside the margin; any other difference becomes a failure.
    Samples borderline(std::vector<std::string>& failures) const {
        Samples found;
        for (std::int64_t sample = 0; sample < golden_.samples(); ++sample) {
            // In the first chosen layer that differs: a flag there changes the norms of every later layer.
            std::size_t layer = 0;
            while (layer < layers_ && !layer_differs(sample, layer)) ++layer;
            if (layer == layers_) continue;
            const std::size_t first = (static_cast<std::size_t>(sample) * layers_ + layer) * patches_;
            double far = -infinity;
            std::int64_t flags = 0;
            for (std::size_t index = first; index < first + patches_; ++index) {
                if (!differs(index)) continue;
                far = worst(far, golden_.flag_distance.as<float>()[index]);
                ++flags;
            }
            if (limits_.flag_margin && far <= *limits_.flag_margin) {
                found.push_back(sample);
            } else {
                failures.push_back("sample " + std::to_string(sample) + ": " + std::to_string(flags) +
                                   " flags of chosen layer " + std::to_string(layer) + " differ, one whose norm is " +
                                   text("%.3g", far) + " of itself away from the threshold");
            }
        }
        return found;
    }

    /// Without flags to compare: the samples over a limit that have a norm inside the margin of its threshold.
    Samples unclear() const {
        Samples found;
        if (!limits_.flag_margin || layers_ == 0) return found;
        for (std::int64_t sample = 0; sample < golden_.samples(); ++sample) {
            const float* distances =
                golden_.flag_distance.as<float>() + static_cast<std::size_t>(sample) * layers_ * patches_;
            double nearest = infinity;
            for (std::size_t index = 0; index < layers_ * patches_; ++index)
                nearest = -worst(-nearest, -static_cast<double>(distances[index]));
            if (!(nearest <= *limits_.flag_margin)) continue;
            const Figures one = figures({sample});
            const bool is_over = (limits_.max_abs && one.max_abs > *limits_.max_abs) ||
                                 (limits_.max_relative && one.max_relative > *limits_.max_relative);
            if (is_over || (limits_.min_cosine && one.min_cosine < *limits_.min_cosine)) found.push_back(sample);
        }
        return found;
    }

    /// `samples`, those whose vectors differ most first.
    Samples farthest(const Samples& samples) const {
        std::vector<std::pair<std::pair<double, double>, std::int64_t>> by_distance;
        for (const std::int64_t sample : samples) {
            const Figures one = figures({sample});
            const bool is_known =
                std::isfinite(one.max_abs) && std::isfinite(one.min_cosine) && std::isfinite(one.max_relative);
            by_distance.emplace_back(
                is_known ? std::make_pair(-one.min_cosine, one.max_relative) : std::make_pair(infinity, infinity),
                sample);
        }
        std::stable_sort(by_distance.begin(), by_distance.end(),
                         [](const auto& a, const auto& b) { return a.first > b.first; });
        Samples sorted;
        for (const auto& [distance, sample] : by_distance) sorted.push_back(sample);
        return sorted;
    }

    /// Max abs and min cosine over the vectors of the samples `kept`, and the figure of the model's own outputs.
    Figures figures(const Samples& kept) const {
        Figures found;
        for (const char* name : {"embedding", "patch_tokens"}) {
            const Array* array = find(got_, name);
            if (array == nullptr) continue;
            const Array& expected = *golden_.output(name);
            const auto width = static_cast<std::size_t>(array->shape.back());
            const std::size_t rows = array->count() / width / static_cast<std::size_t>(golden_.samples());
            // A vector of length 1 is held as if it had its usual length, about the root of its width.
            const double weight =
                limits_.normalized && name == std::string("embedding") ? std::sqrt(static_cast<double>(width)) : 1.0;
            for (const std::int64_t sample : kept) {
                const std::size_t first = static_cast<std::size_t>(sample) * rows * width;
                for (std::size_t row = 0; row < rows; ++row) {
                    add_row(found, array->as<float>() + first + row * width, expected.as<float>() + first + row * width,
                            width, weight);
                }
            }
        }
        for (const auto& [name, expected] : golden_.own)
            found.max_relative = worst(found.max_relative, own_figure(kept, name, expected));
        return found;
    }

    /// Largest difference of one of the model's own outputs, as a share of the largest number expected of it.
    double own_figure(const Samples& kept, const std::string& name, const Array& expected) const {
        const Array* array = find(got_, name);
        if (array == nullptr) return 0;
        const float* numbers = expected.as<float>();
        double largest = 0;
        for (std::size_t index = 0; index < expected.count(); ++index)
            largest = worst(largest, std::abs(static_cast<double>(numbers[index])));
        const std::size_t each = expected.count() / static_cast<std::size_t>(golden_.samples());
        double found = 0;
        for (const std::int64_t sample : kept) {
            const std::size_t first = static_cast<std::size_t>(sample) * each;
            for (std::size_t index = first; index < first + each; ++index)
                found = worst(found, std::abs(static_cast<double>(array->as<float>()[index]) - numbers[index]));
        }
        return found / (largest == 0 ? 1 : largest);
    }

    /// The model's own output that is off the most.
    std::string worst_own(const Samples& kept) const {
        std::string name;
        double most = -1;
        for (const auto& [one, expected] : golden_.own) {
            const double figure = own_figure(kept, one, expected);
            if (std::isnan(figure) || figure > most) {
                name = one;
                most = std::isnan(figure) ? infinity : figure;
            }
        }
        return name;
    }

    static void add_row(Figures& found, const float* got, const float* expected, std::size_t width, double weight) {
        double product = 0, got_square = 0, expected_square = 0;
        for (std::size_t index = 0; index < width; ++index) {
            const double a = got[index], b = expected[index];
            found.max_abs = worst(found.max_abs, weight * std::abs(a - b));
            product += a * b;
            got_square += a * a;
            expected_square += b * b;
        }
        const double lengths = worst(std::sqrt(got_square) * std::sqrt(expected_square), 1e-300);
        found.min_cosine = -worst(-found.min_cosine, -(product / lengths));
    }

    /// Largest relative difference of the norms, up to the first layer of a sample whose flags differ.
    double norm_figure(const Samples& kept) const {
        const Array* norms = find(got_, "artifact_norm");
        double found = norms == nullptr ? 0.0 : -infinity;
        if (norms == nullptr) return found;
        for (const std::int64_t sample : kept) {
            for (std::size_t layer = 0; layer < layers_; ++layer) {
                const std::size_t first = (static_cast<std::size_t>(sample) * layers_ + layer) * patches_;
                for (std::size_t index = first; index < first + patches_; ++index) {
                    const double a = norms->as<float>()[index], b = golden_.artifact_norm->as<float>()[index];
                    found = worst(found, std::abs(a - b) / worst(std::abs(b), 1e-12));
                }
                if (layer_differs(sample, layer)) break;
            }
        }
        return found;
    }

    const Outputs& got_;
    const Golden& golden_;
    const ParityLimits& limits_;
    const Array* mask_;
    std::size_t layers_;
    std::size_t patches_;
};

}  // namespace

Parity compare(const std::map<std::string, Array>& got, const Golden& golden, const ParityLimits& limits) {
    return Comparison(got, golden, limits).run();
}

}  // namespace itae
