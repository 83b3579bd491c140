#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "itae/golden.hpp"
#include "itae/session.hpp"

namespace itae::command {

/// The difference between rows of batches and the same images alone, as runtime/checks/batch_invariance.py defines it.
/// The figures leave out borderline samples.
struct BatchInvariance {
    std::vector<std::int64_t> sizes;  ///< batch sizes that were run
    std::int64_t rows = 0;            ///< rows that were compared; 0 if the model takes one image at a time
    double distance = 0;              ///< largest of an embedding or patch token to that of its image alone, as a share
    double norm_relative = 0;         ///< largest relative difference of `artifact_norm`
    std::int64_t flags_differing = 0;
    std::vector<std::int64_t>
        borderline;  ///< samples that a flag near its threshold explains; at most half of those used
    std::vector<std::string> failures;
};

/// Run golden samples alone and in batches, and compare each row with the result of its image alone.
/// @throws Error mismatch, backend: as `Session::run`.
BatchInvariance check_batches(const Session& session, const Golden& golden, const ParityLimits& limits);

}  // namespace itae::command
