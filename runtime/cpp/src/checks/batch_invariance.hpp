#pragma once

#include "itae/golden.hpp"
#include "itae/session.hpp"
#include "itae/verify.hpp"

namespace itae {

/// Run golden samples alone and in batches, and compare each row with the result of its image alone.
/// @throws Error mismatch, backend: as `Session::run`.
BatchInvariance check_batches(const Session& session, const Golden& golden, const ParityLimits& limits);

}  // namespace itae
