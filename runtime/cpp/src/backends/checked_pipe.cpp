#include "backends/checked_pipe.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <limits>
#include <system_error>
#include <utility>

namespace itae {
namespace {

constexpr int pipe_bytes = 1 << 20;  // more is not allowed to everybody
constexpr int patience = 20;         // milliseconds between two looks at whether anybody still reads

/// A pipe in a table of descriptors that this thread alone has. A process that another thread forks would inherit the
/// writing end, and as long as it lived, the reader would wait for more.
class OwnPipe {
  public:
    /// @param kept a descriptor that the thread needs; it loses all others but the first three.
    explicit OwnPipe(unsigned kept) {
        constexpr unsigned last = std::numeric_limits<unsigned>::max();
        constexpr unsigned unshare = 1U << 1;  // CLOSE_RANGE_UNSHARE
        const auto close = [](unsigned from, unsigned to, unsigned flags) {
            return ::syscall(SYS_close_range, from, to, flags) == 0;  // Linux 5.9
        };
        if (!close(kept + 1, last, unshare)) return;
        if (kept > 3) close(3, kept - 1, 0);
        if (::pipe2(ends_, O_CLOEXEC | O_NONBLOCK) == 0) ::fcntl(ends_[1], F_SETPIPE_SZ, pipe_bytes);
    }
    ~OwnPipe() {
        close_writing_end();
        if (ends_[0] >= 0) ::close(ends_[0]);
    }
    OwnPipe(const OwnPipe&) = delete;
    OwnPipe& operator=(const OwnPipe&) = delete;

    /// For the process's other threads; empty if there is no pipe.
    std::string path() const {
        if (ends_[0] < 0) return {};
        const std::string path =
            "/proc/self/task/" + std::to_string(::syscall(SYS_gettid)) + "/fd/" + std::to_string(ends_[0]);
        return ::access(path.c_str(), R_OK) == 0 ? path : std::string();
    }
    int writing_end() const noexcept { return ends_[1]; }
    void close_writing_end() noexcept {
        if (ends_[1] >= 0) ::close(ends_[1]);
        ends_[1] = -1;
    }

  private:
    int ends_[2] = {-1, -1};
};

/// Writes a piece; false if nobody wants the rest. This side's reading end is open, so there is no SIGPIPE.
bool write(int pipe, ByteView piece, const std::future<void>& over) {
    while (piece.size > 0) {
        if (over.wait_for(std::chrono::seconds(0)) == std::future_status::ready) return false;
        const ssize_t done = ::write(pipe, piece.data, piece.size);
        if (done > 0) {
            piece = {piece.data + done, piece.size - static_cast<std::size_t>(done)};
        } else if (done < 0 && errno == EAGAIN) {
            pollfd waiting{pipe, POLLOUT, 0};
            ::poll(&waiting, 1, patience);
        } else if (done < 0 && errno != EINTR) {
            return false;
        }
    }
    return true;
}

}  // namespace

CheckedPipe::CheckedPipe(CheckedFile& file, std::function<void(ByteView)> look) : file_(file), look_(std::move(look)) {
    std::promise<std::string> path;
    std::future<std::string> made = path.get_future();
    try {
        thread_ = std::thread(&CheckedPipe::work, this, std::move(path), over_.get_future());
        path_ = made.get();
    } catch (const std::system_error&) {  // no more threads
    }
}

CheckedPipe::~CheckedPipe() { end(); }

bool CheckedPipe::finish() {
    end();
    if (failure_) std::rethrow_exception(failure_);
    return is_whole_;
}

void CheckedPipe::end() noexcept {
    if (!thread_.joinable()) return;
    over_.set_value();
    thread_.join();
}

void CheckedPipe::work(std::promise<std::string> path, const std::future<void>& over) noexcept {
    try {
        sigset_t all;  // signals are other threads' business
        ::sigfillset(&all);
        ::pthread_sigmask(SIG_BLOCK, &all, nullptr);
        OwnPipe pipe(static_cast<unsigned>(file_.descriptor()));
        const std::string made = pipe.path();
        path.set_value(made);
        if (made.empty()) return;
        for (ByteView piece = file_.next(); piece.size > 0; piece = file_.next()) {
            look_(piece);
            if (!write(pipe.writing_end(), piece, over)) return;
        }
        is_whole_ = true;
        pipe.close_writing_end();
        over.wait();  // the path leads to this thread, and the reader may not have opened it yet
    } catch (...) {
        failure_ = std::current_exception();
    }
}

}  // namespace itae
