#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "itae/bytes.hpp"
#include "itae/export.hpp"
#include "itae/manifest.hpp"

namespace itae {

/// An array in memory: C order, little-endian.
struct Array {
    std::string dtype;  ///< numpy's name: `float32`, `uint8`, `bool`, `int64` ...
    std::vector<std::int64_t> shape;
    Bytes data;

    /// The elements, whose type must be that of `dtype`.
    template <typename T>
    const T* as() const noexcept {
        return reinterpret_cast<const T*>(data.data());
    }
    /// Number of elements.
    std::size_t count() const noexcept;
};

/// Reads an array from the bytes of an npy file; arrays of objects are refused.
///
/// @param name of the file, for messages.
/// @throws Error model: it is not an npy file, or holds more or fewer bytes than it says.
ITAE_EXPORT Array read_npy(ByteView file, const std::string& name);

/// Reads the arrays `names` from the bytes of an npz file; those that it lacks are left out.
///
/// @param max_bytes that all its members together may unpack to.
/// @throws Error model: it is not an npz file, unpacks to more, or one of these arrays is damaged.
ITAE_EXPORT std::map<std::string, Array> read_npz(ByteView file, const std::vector<std::string>& names,
                                                  std::uint64_t max_bytes, const std::string& name);

/// N inputs and what eager PyTorch makes of them: P patches, C width, K chosen layers (0 without ITAE).
struct ITAE_EXPORT Golden {
    Array input;  ///< as the model takes it: (N, 3, H, W) float32, normalised, or (N, H, W, 3) uint8
    /// (N, C) float32, or (N, 2 C) with the mean patch token; nothing where the outputs are the model's own
    std::optional<Array> embedding;
    Array flags;          ///< (N, K, P) bool: which patches are artifacts
    Array flag_distance;  ///< (N, K, P) float32: how far each norm is from its threshold, as a share of itself
    std::optional<Array> patch_tokens;   ///< (N, P, C) float32, stored where the model outputs it
    std::optional<Array> artifact_norm;  ///< (N, K, P) float32, stored where the model outputs it
    std::map<std::string, Array> own;    ///< the outputs (N, ...) float32 that are the model's own, by name

    /// The golden sample of a model, checked against its manifest.
    ///
    /// @throws Error model: it is missing, altered, of another model, lacks an output of the model, or its arrays have
    ///     other shapes than the model's.
    static Golden read(const Manifest& manifest);

    /// Number of samples, N.
    std::int64_t samples() const noexcept { return input.shape[0]; }
    /// The expected output of this name, as a model names it; null if it is not stored.
    const Array* output(const std::string& name) const noexcept;
};

/// How far a model is from its golden sample. Figures are over the samples that are not left out.
struct ITAE_EXPORT Parity {
    double max_abs;  ///< largest absolute difference over `embedding` (sqrt(C)-fold where normalized), `patch_tokens`
    double min_cosine;     ///< smallest cosine between a row of `embedding` or `patch_tokens` and the expected one
    double norm_relative;  ///< largest relative difference of `artifact_norm`; 0 if it is no output
    /// Largest difference of the model's own outputs, as a share of the output's largest number; 0 without.
    double max_relative;
    bool flags_checked;
    std::int64_t flags_differing;  ///< flags that differ, borderline samples included
    /// Samples whose flags differ only at norms inside the margin of the threshold. If flags are no output: samples
    /// over a limit that have such a norm, since its flag may have fallen the other way.
    std::vector<std::int64_t> borderline;
    /// The borderline samples that no limit applies to: those that differ most, at most half of all samples.
    std::vector<std::int64_t> left_out;
    std::vector<std::string> failures;  ///< the reasons why it did not pass, a clause each

    bool passed() const noexcept { return failures.empty(); }
};

/// Compares outputs, by the names that the model gives them, with the golden sample; the same figures and verdicts as
/// runtime/contract/comparison.py.
///
/// @param got at least one output; `artifact_mask` (N, K, P) bool makes the flags checked.
ITAE_EXPORT Parity compare(const std::map<std::string, Array>& got, const Golden& golden, const ParityLimits& limits);

}  // namespace itae
