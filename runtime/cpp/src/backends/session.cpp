#include "itae/session.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "backends/backends.hpp"
#include "itae/error.hpp"

namespace itae {
namespace {

constexpr std::int64_t default_batch = 8;  // for ONNX, whose batch is dynamic; on a CPU larger ones are no faster
constexpr std::int64_t max_batch = 2147483647;

std::string as_text(const std::vector<std::int64_t>& shape) {
    std::string text;
    for (const std::int64_t side : shape)
        text += (text.empty() ? "" : ", ") + (side < 0 ? "batch" : std::to_string(side));
    return "(" + text + ")";
}

std::size_t elements_of(const std::vector<std::int64_t>& shape) {
    std::size_t count = 1;
    for (std::size_t axis = 1; axis < shape.size(); ++axis) count *= static_cast<std::size_t>(shape[axis]);
    return count;
}

/// Whether none of `count` float32 is NaN or infinite. They may lie anywhere: a caller's buffer need not be aligned.
bool all_finite(const void* data, std::size_t count) {
    const auto* bytes = static_cast<const std::uint8_t*>(data);
    std::uint32_t bad = 0;
    for (std::size_t number = 0; number < count; ++number) {
        std::uint32_t bits = 0;
        std::memcpy(&bits, bytes + 4 * number, 4);
        bad |= static_cast<std::uint32_t>((bits & 0x7f800000U) == 0x7f800000U);
    }
    return bad == 0;
}

/// The manifest, if its shapes are those of batches that memory can hold at all.
Manifest checked(Manifest manifest) {
    std::vector<TensorInfo> tensors = manifest.outputs;
    tensors.push_back(manifest.input);
    for (const TensorInfo& tensor : tensors) {
        double bytes = 4;
        for (std::size_t axis = 1; axis < tensor.shape.size(); ++axis)
            bytes *= tensor.shape[axis] < 0 ? 0.0 : static_cast<double>(tensor.shape[axis]);
        if (tensor.shape.empty() || !(bytes > 0) || bytes > 1e12)
            throw Error(ErrorKind::model, "the manifest gives `" + tensor.name + "` the shape " +
                                              as_text(tensor.shape) +
                                              ", expected a batch of something: export the model again");
    }
    return manifest;
}

/// Smallest, preferred and largest batch.
std::array<std::int64_t, 3> batch_limits(const Manifest& manifest) {
    if (const std::int64_t fixed = manifest.input.shape.front(); fixed > 0) return {fixed, fixed, fixed};
    if (manifest.builder != "onnx" && manifest.batch) return *manifest.batch;
    return {1, default_batch, max_batch};
}

}  // namespace

std::size_t bytes_of(const TensorInfo& tensor) {
    return elements_of(tensor.shape) * (tensor.dtype == "float32" ? 4 : 1);
}

Session::Session(Manifest manifest, std::string name)
    : name_(std::move(name)), manifest_(checked(std::move(manifest))), input_bytes_(bytes_of(manifest_.input)) {}

Session::~Session() = default;

std::int64_t Session::smallest_batch() const noexcept { return batch_limits(manifest_)[0]; }

std::int64_t Session::preferred_batch() const noexcept { return batch_limits(manifest_)[1]; }

std::int64_t Session::largest_batch() const noexcept { return batch_limits(manifest_)[2]; }

std::int64_t Session::chosen_batch(std::int64_t batch) const {
    if (batch == 0) return preferred_batch();
    if (batch < 1 || batch > largest_batch()) {
        throw Error(ErrorKind::usage, "a batch of " + std::to_string(batch) + ": the model takes 1 to " +
                                          std::to_string(largest_batch()) + " at a time");
    }
    return batch;
}

std::vector<Array> Session::run(const void* input, std::int64_t batch, const std::vector<std::string>& wanted,
                                Numbers numbers) const {
    return start(input, batch, wanted, numbers).get();
}

std::future<std::vector<Array>> Session::begin(const void* input, std::int64_t batch,
                                               const std::vector<std::string>& wanted) const {
    std::promise<std::vector<Array>> done;
    done.set_value(compute(input, batch, wanted));
    return done.get_future();
}

int Session::batches_in_flight() const noexcept { return 1; }

std::future<std::vector<Array>> Session::start(const void* input, std::int64_t batch,
                                               const std::vector<std::string>& wanted, Numbers numbers) const {
    std::vector<std::string> names = wanted;
    if (names.empty())
        for (const TensorInfo& output : manifest_.outputs) names.push_back(output.name);
    for (const std::string& name : names) {
        const auto is_it = [&](const TensorInfo& output) { return output.name == name; };
        if (std::none_of(manifest_.outputs.begin(), manifest_.outputs.end(), is_it)) {
            std::string known;
            for (const TensorInfo& output : manifest_.outputs) known += (known.empty() ? "" : ", ") + output.name;
            throw Error(ErrorKind::usage,
                        "the model has no output `" + name + "`, only " + known + "; see the exporter's --outputs");
        }
    }
    check_input(input, batch);
    // An engine may take no fewer than some number: the last picture is repeated, and the extra rows are dropped.
    const std::int64_t filled = std::max(batch, smallest_batch());
    Bytes repeated;
    if (filled > batch) {
        const auto* bytes = static_cast<const std::uint8_t*>(input);
        const std::size_t held = static_cast<std::size_t>(batch) * input_bytes_;
        repeated.reserve(static_cast<std::size_t>(filled) * input_bytes_);
        repeated.assign(bytes, bytes + held);
        for (std::int64_t row = batch; row < filled; ++row)
            repeated.insert(repeated.end(), bytes + held - input_bytes_, bytes + held);
        input = repeated.data();
    }
    // Deferred: `get` runs it in the caller's thread, and a future that is dropped doesn't.
    return std::async(
        std::launch::deferred, [this, computed = begin(input, filled, names), names, batch, filled, numbers]() mutable {
            std::vector<Array> arrays = computed.get();
            for (std::size_t number = 0; number < arrays.size(); ++number) {
                check_output(arrays[number], names[number], filled, Numbers::any);
                if (filled > batch) {
                    arrays[number].data.resize(arrays[number].data.size() / static_cast<std::size_t>(filled) *
                                               static_cast<std::size_t>(batch));
                    arrays[number].shape.front() = batch;
                }
                if (numbers == Numbers::finite) check_output(arrays[number], names[number], batch, numbers);
            }
            return arrays;
        });
}

void Session::check_input(const void* input, std::int64_t batch) const {
    const TensorInfo& expected = manifest_.input;
    const std::string takes =
        "the model takes `" + expected.name + "` as " + expected.dtype + " " + as_text(expected.shape);
    if (batch < 1 || batch > largest_batch()) {
        throw Error(ErrorKind::image, "a batch of " + std::to_string(batch) + " images: the model takes 1 to " +
                                          std::to_string(largest_batch()));
    }
    if (input == nullptr) throw Error(ErrorKind::usage, "no input: " + takes);
    const std::size_t bytes = static_cast<std::size_t>(batch) * input_bytes_;
    if (expected.dtype == "float32" && !all_finite(input, bytes / 4))
        throw Error(ErrorKind::image, "a batch that holds NaN or infinity: " + takes);
}

void Session::check_output(const Array& array, const std::string& name, std::int64_t batch, Numbers numbers) const {
    const TensorInfo& declared = *std::find_if(manifest_.outputs.begin(), manifest_.outputs.end(),
                                               [&](const TensorInfo& output) { return output.name == name; });
    std::vector<std::int64_t> shape = declared.shape;
    shape.front() = batch;
    const std::string& model = manifest_.model_file.name;
    if (array.shape != shape || array.dtype != declared.dtype) {
        throw Error(ErrorKind::mismatch, model + " gave `" + name + "` as " + array.dtype + " " + as_text(array.shape) +
                                             ", its manifest says " + declared.dtype + " " + as_text(shape) +
                                             ": export it again");
    }
    if (numbers == Numbers::finite && array.dtype == "float32" &&
        !all_finite(array.data.data(), array.data.size() / 4)) {
        const std::size_t row_bytes = array.data.size() / static_cast<std::size_t>(batch);
        int rows = 0;
        for (std::int64_t row = 0; row < batch; ++row)
            rows += all_finite(array.data.data() + static_cast<std::size_t>(row) * row_bytes, row_bytes / 4) ? 0 : 1;
        throw Error(ErrorKind::mismatch, model + " gave NaN or infinity in `" + name + "` for " + std::to_string(rows) +
                                             " of " + std::to_string(batch) +
                                             " images; export it with --precision fp32");
    }
}

}  // namespace itae
