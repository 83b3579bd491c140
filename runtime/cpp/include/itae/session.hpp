#pragma once

#include <cstdint>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "itae/bytes.hpp"
#include "itae/export.hpp"
#include "itae/golden.hpp"
#include "itae/manifest.hpp"

namespace itae {

/// What runs a model, and where.
struct SessionOptions {
    /// `onnxruntime`, `tensorrt` or `tensorrt-rtx`; `auto`: what the model was made for.
    std::string backend = "auto";
    /// `cpu`, `cuda` or `cuda:N`; `auto`: the CPU for an ONNX file, the first GPU for an engine.
    std::string device = "auto";
    /// How many threads one run on a CPU uses; 0: what a container's quota grants, or the library's own choice.
    int threads = 0;
    /// ONNX Runtime's shared library, or the folder that it lies in. Empty: the environment variable
    /// ITAE_ONNXRUNTIME, a library beside the program or beside libitae, then wherever the loader looks.
    std::string ort_library;
};

/// Whether NaN and infinity in outputs are an error.
enum class Numbers { finite, any };

/// A loaded model. Any number of threads may run it at the same time.
class ITAE_EXPORT Session {
  public:
    virtual ~Session();
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;

    const Manifest& manifest() const noexcept { return manifest_; }
    /// The library that runs the model, with its version and device: `ONNX Runtime 1.32.0 (CPU)`.
    const std::string& name() const noexcept { return name_; }

    /// The smallest batch that the model takes; fewer pictures are filled up by repeating the last one.
    std::int64_t smallest_batch() const noexcept;
    /// The batch size to take if nobody asks for another.
    std::int64_t preferred_batch() const noexcept;
    /// The largest batch that the model takes; 2³¹ - 1 for ONNX, whose memory ends far below it.
    std::int64_t largest_batch() const noexcept;
    /// The number of pictures to run at a time: `batch`, or the preferred number if 0.
    /// @throws Error usage: the model does not take so many.
    std::int64_t chosen_batch(std::int64_t batch) const;

    /// Bytes of one picture's input, and its number of elements.
    std::size_t input_bytes() const noexcept { return input_bytes_; }

    /// Run a batch: check the input, run it, check what came out.
    ///
    /// @param input `batch` pictures, one after the other, as the manifest says: (3, H, W) float32, normalised, or
    ///     (H, W, 3) uint8. It is only read.
    /// @param batch from 1 to `largest_batch()`.
    /// @param wanted names of outputs; all of the model's if empty.
    /// @param numbers whether NaN and infinity in outputs are an error.
    /// @returns the outputs in the order of `wanted`, (batch, ...) each.
    /// @throws Error image: no picture, too many, or the input holds NaN or infinity.
    /// @throws Error usage: the model has no such output.
    /// @throws Error mismatch: an output holds NaN or infinity, or is not what the manifest says.
    /// @throws Error backend: the library failed, for one because memory ran out.
    std::vector<Array> run(const void* input, std::int64_t batch, const std::vector<std::string>& wanted = {},
                           Numbers numbers = Numbers::finite) const;

    /// Begin a batch, which a GPU computes while the caller prepares the next one; a CPU computes it here.
    ///
    /// @param input as for `run`; it is not read any more when this returns.
    /// @returns what `run` returns: `get` waits for it, and throws what `run` throws of outputs. The session must
    /// outlive
    ///     it; a batch whose outputs nobody asks for is dropped.
    /// @throws Error as `run`.
    std::future<std::vector<Array>> start(const void* input, std::int64_t batch,
                                          const std::vector<std::string>& wanted = {},
                                          Numbers numbers = Numbers::finite) const;

    /// How many batches are worth being started before the first one's outputs are asked for.
    virtual int batches_in_flight() const noexcept;

  protected:
    Session(Manifest manifest, std::string name);

    /// Run a batch that was checked. `wanted` holds names of the model's outputs.
    virtual std::vector<Array> compute(const void* input, std::int64_t batch,
                                       const std::vector<std::string>& wanted) const = 0;

    /// Begin a batch that was checked; here it is computed at once. `input` must not be read after this returns.
    virtual std::future<std::vector<Array>> begin(const void* input, std::int64_t batch,
                                                  const std::vector<std::string>& wanted) const;

    std::string name_;

  private:
    void check_input(const void* input, std::int64_t batch) const;
    void check_output(const Array& array, const std::string& name, std::int64_t batch, Numbers numbers) const;

    Manifest manifest_;
    std::size_t input_bytes_;
};

/// Check the files of a model against its manifest, and load it on the library that runs it.
///
/// @param model_path `X.onnx`, `X.engine` or `X.plan`, its manifest beside it.
/// @throws Error model: the model, its external data or its manifest is missing, altered or too new.
/// @throws Error usage: there is no such backend or device, or not for this kind of model.
/// @throws Error backend: this machine lacks the library, driver or GPU that the model needs.
ITAE_EXPORT std::unique_ptr<Session> open_session(const std::string& model_path, const SessionOptions& options = {});

}  // namespace itae
