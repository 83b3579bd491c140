#pragma once

#include <functional>
#include <memory>

#include "backends/gpu.hpp"
#include "itae/session.hpp"

namespace itae {

/// Loads a program on the GPU that is entered. @throws Error
using LoadProgram = std::function<std::unique_ptr<Program>()>;

/// A session on a GPU: a batch is copied in, computed and copied out on three streams, so that one batch is copied
/// while another is computed.
///
/// Threads share one program and its stream: a GPU computes one batch after another in any case. They wait for each
/// other while they put work on the streams, not while it is done.
///
/// @throws Error backend: the GPU fails; and whatever `load` throws.
std::unique_ptr<Session> make_gpu_session(Manifest manifest, std::unique_ptr<Gpu> gpu, const LoadProgram& load);

}  // namespace itae
