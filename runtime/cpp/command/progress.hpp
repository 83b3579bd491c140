#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <string>
#include <utility>

namespace itae::command {

/// How far a run is, on stderr: one line that changes on a terminal, elsewhere a line every ten seconds.
class Progress {
  public:
    /// @param total number of images; the same one by two arguments counts twice.
    Progress(std::int64_t total, bool is_quiet, std::FILE* stream);
    ~Progress();
    Progress(const Progress&) = delete;
    Progress& operator=(const Progress&) = delete;

    void show(std::int64_t embedded, std::int64_t failed);

  private:
    using Clock = std::chrono::steady_clock;
    std::string words(Clock::time_point now, std::int64_t embedded, std::int64_t failed);

    std::int64_t total_;
    bool is_quiet_;
    bool is_terminal_;
    bool has_line_ = false;
    std::FILE* stream_;
    Clock::time_point due_;
    std::deque<std::pair<Clock::time_point, std::int64_t>> seen_;  // over which the speed is measured
};

}  // namespace itae::command
