#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "itae/export.hpp"
#include "itae/golden.hpp"
#include "itae/session.hpp"

namespace itae {

/// The difference between rows of batches and the same images alone, as runtime/checks/batch_invariance.py defines it.
/// The figures leave out borderline samples.
struct BatchInvariance {
    std::vector<std::int64_t> sizes;  ///< batch sizes that were run
    std::int64_t rows = 0;            ///< rows that were compared; 0 if the model takes one image at a time
    double distance = 0;              ///< largest of an embedding or patch token to that of its image alone, as a share
    double norm_relative = 0;         ///< largest relative difference of `artifact_norm`
    std::int64_t flags_differing = 0;
    /// Samples that a flag near its threshold explains; at most half of those used.
    std::vector<std::int64_t> borderline;
    std::vector<std::string> failures;
};

/// How a model did on its golden sample; `python -m runtime verify` has the same figures and verdict.
struct ITAE_EXPORT Verification {
    std::int64_t samples;
    std::int64_t flagged;  ///< patches that are artifacts in the golden sample, over all layers that are attenuated
    Parity parity;
    BatchInvariance batches;
    std::vector<std::string> failures;  ///< the reasons why it did not pass, a clause each
    double seconds;                     ///< to run the samples, without loading the model

    bool passed() const noexcept { return failures.empty(); }
};

/// Run a model's golden sample, alone and in batches, and compare the results with those of eager PyTorch.
///
/// @param batch how many samples to run at a time; 0: `session.preferred_batch()`.
/// @throws Error model: the golden sample is missing, altered or of another model.
/// @throws Error usage: the model does not take such a batch.
/// @throws Error mismatch: an output holds NaN or infinity. Error backend: the library failed.
ITAE_EXPORT Verification verify(const Session& session, std::int64_t batch = 0);

}  // namespace itae
