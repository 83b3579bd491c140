#pragma once

#include <exception>
#include <functional>
#include <future>
#include <string>
#include <thread>

#include "contract/checked_file.hpp"

namespace itae {

/// A path at which a library reads a checked file once, from start to end: a pipe, into which a thread writes the very
/// bytes that were checked. So memory holds what the library makes of the file, and not the file beside it.
class CheckedPipe {
  public:
    /// @param file is the thread's until `finish`.
    /// @param look is given each piece before the library is; what it throws ends the writing.
    CheckedPipe(CheckedFile& file, std::function<void(ByteView)> look);
    ~CheckedPipe();
    CheckedPipe(const CheckedPipe&) = delete;
    CheckedPipe& operator=(const CheckedPipe&) = delete;

    /// Where the library finds it; empty if this system has no such pipes.
    const std::string& path() const noexcept { return path_; }

    /// End the writing, when the library is done with the path.
    /// @returns whether all of the file was written.
    /// @throws what `look` threw; Error model: the file was altered since it was checked.
    bool finish();

  private:
    void work(std::promise<std::string> path, const std::future<void>& over) noexcept;
    void end() noexcept;

    CheckedFile& file_;
    const std::function<void(ByteView)> look_;
    bool is_whole_ = false;
    std::exception_ptr failure_;
    std::promise<void> over_;
    std::thread thread_;
    std::string path_;
};

}  // namespace itae
