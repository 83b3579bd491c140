#pragma once

#include <deque>
#include <mutex>
#include <string>

namespace itae {

/// The last errors of a library that fails without a reason and gives the reason to its logger. Threads may share it.
class LibraryLog {
  public:
    /// Forget what was said so far, about something else.
    void forget();
    /// Take an error. Where memory runs out, it is lost.
    void record(const char* message) noexcept;
    /// The last errors on one line, each once, cut where they are very long; `it gave no reason` where there is none.
    std::string last_errors() const;

  private:
    mutable std::mutex mutex_;
    std::deque<std::string> errors_;
};

}  // namespace itae
