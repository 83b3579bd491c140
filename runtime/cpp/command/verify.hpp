#pragma once

#include <string>

#include "itae/session.hpp"

namespace itae::command {

/// Replay the golden sample of a model alone and in batches, and print the comparison to stdout.
///
/// @returns whether the model keeps every limit.
/// @throws Error model: its golden sample is missing or altered. Error mismatch: it gave NaN or infinity.
bool verify(const Session& session, std::int64_t batch, bool as_json);

}  // namespace itae::command
