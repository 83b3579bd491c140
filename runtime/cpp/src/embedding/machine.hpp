#pragma once

#include <optional>
#include <string>

namespace itae {

/// The largest number of threads that an option may ask for; more is a slip of the pen.
constexpr int max_threads = 4096;

/// The number of cores that this process may use, at least 1: those that it may run on, or a container's quota if
/// that is less.
int usable_cores();

/// The number of threads that a container's quota grants, for libraries that would take all cores; 0 if there is no
/// quota below the number of cores.
int thread_limit();

/// The CPU time that control groups grant this process, in cores, rounded up; none if all of it.
///
/// The smallest quota counts: of the process's own group or of one above it, in version 1 or 2.
///
/// @param root `/`, or a folder that stands for it.
std::optional<int> cpu_quota(const std::string& root);

}  // namespace itae
