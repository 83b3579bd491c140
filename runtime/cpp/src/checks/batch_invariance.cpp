#include "checks/batch_invariance.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <set>

namespace itae {
namespace {

constexpr std::size_t max_samples = 4;
constexpr std::int64_t strangers = 2;  // pictures unlike any golden sample; their rows are not compared

/// The number of the golden sample in each row; a negative number is a stranger.
using Batch = std::vector<std::int64_t>;
/// The outputs of one row, by name: their elements as they lie.
using Row = std::map<std::string, Bytes>;

std::vector<float> floats(const Bytes& bytes) {
    std::vector<float> values(bytes.size() / sizeof(float));
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
}

/// Largest length of the difference of two vectors of `width`, as a share of the second's.
double distance(const std::vector<float>& a, const std::vector<float>& b, std::size_t width) {
    double largest = 0;
    for (std::size_t start = 0; start < a.size(); start += width) {
        double apart = 0, length = 0;
        for (std::size_t at = start; at < start + width; ++at) {
            const double difference = double{a[at]} - double{b[at]};
            apart += difference * difference;
            length += double{b[at]} * double{b[at]};
        }
        largest = std::max(largest, std::sqrt(apart) / std::max(std::sqrt(length), 1e-30));
    }
    return largest;
}

/// The difference between one row of a batch and its image alone.
struct Compared {
    Batch batch;
    std::size_t number = 0;
    double distance = 0, norm_relative = 0;
    std::int64_t flags = 0;
    double flag_distance = 0;  ///< largest to the threshold of a flag that differs, in the first layer that has one
    std::int64_t sample() const { return batch[number]; }
};

class Replay {
  public:
    Replay(const Session& session, const Golden& golden, const ParityLimits& limits)
        : session_(session), golden_(golden), limits_(limits) {
        const bool is_float = golden.input.dtype == "float32";
        const std::size_t bytes = session.input_bytes();
        Bytes low, high;
        if (is_float) {
            const std::vector<float> values = floats(golden.input.data);
            const auto [least, most] = std::minmax_element(values.begin(), values.end());
            low.resize(sizeof(float));
            high.resize(sizeof(float));
            std::memcpy(low.data(), &*least, sizeof(float));
            std::memcpy(high.data(), &*most, sizeof(float));
        } else {
            const auto [least, most] = std::minmax_element(golden.input.data.begin(), golden.input.data.end());
            low = {*least};
            high = {*most};
        }
        std::mt19937 random(0);  // noise of the two extremes, and a picture of the lower one
        Bytes flat, loud;
        while (flat.size() < bytes) {
            flat.insert(flat.end(), low.begin(), low.end());
            const Bytes& one = (random() & 1U) != 0 ? high : low;
            loud.insert(loud.end(), one.begin(), one.end());
        }
        strangers_ = {std::move(flat), std::move(loud)};
    }

    /// Run a batch and compare its rows; a sample's first batch is the one that counts as alone.
    std::vector<Compared> rows(const Batch& batch) {
        Bytes input;
        for (const std::int64_t one : batch) {
            if (one < 0) {
                const Bytes& stranger = strangers_[static_cast<std::size_t>(-1 - one)];
                input.insert(input.end(), stranger.begin(), stranger.end());
            } else {
                const std::uint8_t* start =
                    golden_.input.data.data() + static_cast<std::size_t>(one) * session_.input_bytes();
                input.insert(input.end(), start, start + session_.input_bytes());
            }
        }
        const std::vector<Array> outputs = session_.run(input.data(), static_cast<std::int64_t>(batch.size()));
        std::vector<Compared> compared;
        for (std::size_t number = 0; number < batch.size(); ++number) {
            Row got;
            for (std::size_t output = 0; output < outputs.size(); ++output) {
                const Bytes& data = outputs[output].data;
                const std::size_t size = data.size() / batch.size();
                const auto start = data.begin() + static_cast<std::ptrdiff_t>(number * size);
                got[session_.manifest().outputs[output].name] = Bytes(start, start + static_cast<std::ptrdiff_t>(size));
            }
            if (batch[number] < 0) continue;
            const auto [alone, is_first] = alone_.emplace(batch[number], got);
            if (!is_first) compared.push_back(compare(batch, number, got, alone->second));
        }
        return compared;
    }

    bool is_off(const Compared& row) const {
        const bool far = limits_.batch_distance && !(row.distance <= *limits_.batch_distance);
        const bool norm = limits_.flag_margin && !(row.norm_relative <= *limits_.flag_margin);
        return far || norm || has_clear_flag(row);
    }

    /// The smallest distance of a norm of a sample to its threshold; infinity without ITAE.
    double margin(std::int64_t sample) const {
        const std::size_t each = golden_.flag_distance.count() / static_cast<std::size_t>(golden_.samples());
        const float* start = golden_.flag_distance.as<float>() + static_cast<std::size_t>(sample) * each;
        const float* least = std::min_element(start, start + each);
        return each == 0 ? std::numeric_limits<double>::infinity() : double{*least};
    }

    /// The samples whose rows are off in a way that a flag near its threshold can explain, the farthest first.
    std::vector<std::int64_t> borderline(std::vector<Compared> off) const {
        const bool sees_flags = session_.manifest().has_output("artifact_mask");
        std::stable_sort(off.begin(), off.end(),
                         [](const Compared& a, const Compared& b) { return a.distance > b.distance; });
        std::set<std::int64_t> unexplained;
        for (const Compared& row : off) {
            const bool explained = sees_flags ? row.flags > 0 && !has_clear_flag(row)
                                              : margin(row.sample()) <= limits_.flag_margin.value_or(0);
            if (!explained) unexplained.insert(row.sample());
        }
        std::vector<std::int64_t> found;
        for (const Compared& row : off) {
            const std::int64_t sample = row.sample();
            if (unexplained.count(sample) == 0 && std::find(found.begin(), found.end(), sample) == found.end())
                found.push_back(sample);
        }
        return found;
    }

  private:
    bool has_clear_flag(const Compared& row) const {
        return row.flags > 0 && row.flag_distance > limits_.flag_margin.value_or(0);
    }

    Compared compare(const Batch& batch, std::size_t number, const Row& got, const Row& alone) const {
        Compared row{batch, number, 0, 0, 0, 0};
        const Manifest& manifest = session_.manifest();
        const auto patches = static_cast<std::size_t>(manifest.patches());
        std::size_t layers = manifest.layers.size();  // those whose norms count
        if (const auto mask = got.find("artifact_mask"); mask != got.end()) {
            const Bytes& other = alone.at("artifact_mask");
            const std::size_t none = mask->second.size();
            std::size_t first = none;
            for (std::size_t at = 0; at < none; ++at) {
                if (mask->second[at] == other[at]) continue;
                ++row.flags;
                // A flag there changes the norms of every later layer.
                if (first == none) first = at / patches;
                const float* distances =
                    golden_.flag_distance.as<float>() + static_cast<std::size_t>(row.sample()) * none;
                if (at / patches == first) row.flag_distance = std::max(row.flag_distance, double{distances[at]});
            }
            if (first != none) layers = first + 1;
        }
        for (const char* name : {"embedding", "patch_tokens"}) {
            const auto found = got.find(name);
            if (found == got.end()) continue;
            const std::int64_t width = name == std::string("embedding") ? manifest.embedding_width() : manifest.width;
            row.distance = std::max(
                row.distance, distance(floats(found->second), floats(alone.at(name)), static_cast<std::size_t>(width)));
        }
        for (const auto& [name, expected] : golden_.own) {
            const auto found = got.find(name);  // one vector
            if (found == got.end()) continue;
            row.distance =
                std::max(row.distance, distance(floats(found->second), floats(alone.at(name)),
                                                expected.count() / static_cast<std::size_t>(golden_.samples())));
        }
        if (const auto norms = got.find("artifact_norm"); norms != got.end()) {
            std::vector<float> a = floats(norms->second), b = floats(alone.at("artifact_norm"));
            a.resize(std::min(a.size(), layers * patches));
            b.resize(a.size());
            row.norm_relative = distance(a, b, 1);
        }
        return row;
    }

    const Session& session_;
    const Golden& golden_;
    const ParityLimits& limits_;
    std::vector<Bytes> strangers_;
    std::map<std::int64_t, Row> alone_;
};

std::string as_text(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.3g", value);
    return text;
}

}  // namespace

BatchInvariance check_batches(const Session& session, const Golden& golden, const ParityLimits& limits) {
    const std::int64_t smallest = session.smallest_batch(), preferred = session.preferred_batch();
    const bool is_onnx = session.manifest().builder == "onnx";
    std::set<std::int64_t> sizes;
    for (const std::int64_t size : {std::int64_t{2}, std::int64_t{3}, smallest, smallest + (smallest % 2 == 0 ? 1 : 0),
                                    preferred, is_onnx ? preferred : session.largest_batch()})
        if (size >= std::max<std::int64_t>(smallest, 2) && size <= session.largest_batch()) sizes.insert(size);
    BatchInvariance result;
    if (sizes.empty()) {
        result.sizes = {1};
        return result;
    }
    Replay replay(session, golden, limits);
    std::vector<std::int64_t> chosen(static_cast<std::size_t>(golden.samples()));
    std::iota(chosen.begin(), chosen.end(), 0);
    std::stable_sort(chosen.begin(), chosen.end(),  // those with the clearest flags
                     [&](std::int64_t a, std::int64_t b) { return replay.margin(a) > replay.margin(b); });
    chosen.resize(std::min(chosen.size(), max_samples));

    std::vector<Compared> rows;
    const auto run = [&](const Batch& batch) {
        for (Compared& row : replay.rows(batch)) rows.push_back(std::move(row));
    };
    for (const std::int64_t sample : chosen) run(Batch(static_cast<std::size_t>(smallest), sample));
    const std::int64_t largest = *sizes.rbegin();
    const auto pick = [&](std::int64_t place) { return chosen[static_cast<std::size_t>(place) % chosen.size()]; };
    for (const std::int64_t size : sizes) {
        if (size == largest && sizes.size() > 1) continue;
        Batch batch;
        for (std::int64_t row = 0; row < size; ++row)
            batch.push_back(row % 3 == 0 ? -1 - (row / 3 + size) % strangers : pick(row + size));
        run(batch);
    }
    Batch all;
    for (std::int64_t row = 0; row < largest; ++row) all.push_back(pick(row + 1));
    run(all);

    std::vector<Compared> off;
    std::copy_if(rows.begin(), rows.end(), std::back_inserter(off),
                 [&](const Compared& row) { return replay.is_off(row); });
    result.borderline = replay.borderline(off);
    result.borderline.resize(std::min(result.borderline.size(), chosen.size() / 2));
    const auto is_left_out = [&](const Compared& row) {
        return std::find(result.borderline.begin(), result.borderline.end(), row.sample()) != result.borderline.end();
    };
    sizes.insert(smallest);
    result.sizes.assign(sizes.begin(), sizes.end());
    result.rows = static_cast<std::int64_t>(rows.size());
    for (const Compared& row : rows) {
        result.flags_differing += row.flags;
        if (is_left_out(row)) continue;
        result.distance = std::max(result.distance, row.distance);
        result.norm_relative = std::max(result.norm_relative, row.norm_relative);
    }
    off.erase(std::remove_if(off.begin(), off.end(), is_left_out), off.end());
    if (!off.empty()) {
        const Compared& worst = *std::max_element(
            off.begin(), off.end(), [](const Compared& a, const Compared& b) { return a.distance < b.distance; });
        result.failures.push_back(
            "sample " + std::to_string(worst.sample()) + " in row " + std::to_string(worst.number) + " of a batch of " +
            std::to_string(worst.batch.size()) + " is not what it is alone: its vectors are " +
            as_text(worst.distance) + " of their length away, limit " +
            (limits.batch_distance ? as_text(*limits.batch_distance) : "none") + ", " + std::to_string(worst.flags) +
            " flags differ; " + std::to_string(off.size()) + " of " + std::to_string(rows.size()) + " rows are off");
    }
    std::sort(result.borderline.begin(), result.borderline.end());
    return result;
}

}  // namespace itae
