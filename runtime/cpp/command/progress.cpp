#include "progress.hpp"

#include <unistd.h>

#include <cmath>

namespace itae::command {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr auto between_lines = seconds(10);
constexpr auto between_changes = milliseconds(200);
constexpr auto window = seconds(30);

/// `40 s`, `12 min`, `3 h 20 min`.
std::string duration(double time) {
    if (time < 90) return std::to_string(std::lround(time)) + " s";
    const long minutes = std::lround(time / 60);
    if (minutes < 90) return std::to_string(minutes) + " min";
    return std::to_string(minutes / 60) + " h " + std::to_string(minutes % 60) + " min";
}

}  // namespace

Progress::Progress(std::int64_t total, bool is_quiet, std::FILE* stream)
    : total_(total),
      is_quiet_(is_quiet),
      is_terminal_(::isatty(::fileno(stream)) == 1),
      stream_(stream),
      due_(Clock::now() + (is_terminal_ ? between_changes : milliseconds(between_lines))),
      seen_{{Clock::now(), 0}} {}

Progress::~Progress() {
    if (has_line_) std::fputs("\r\x1b[K", stream_);
}

void Progress::show(std::int64_t embedded, std::int64_t failed) {
    const auto now = Clock::now();
    if (is_quiet_ || now < due_) return;
    due_ = now + (is_terminal_ ? between_changes : milliseconds(between_lines));
    const std::string line = words(now, embedded, failed);
    std::fprintf(stream_, is_terminal_ ? "\r%s\x1b[K" : "%s\n", line.c_str());
    std::fflush(stream_);
    has_line_ = is_terminal_;
}

std::string Progress::words(Clock::time_point now, std::int64_t embedded, std::int64_t failed) {
    const std::int64_t done = embedded + failed;
    seen_.emplace_back(now, done);
    while (now - seen_.front().first > window && seen_.size() > 2) seen_.pop_front();
    const double time = std::chrono::duration<double>(now - seen_.front().first).count();
    const double speed = time > 0 ? static_cast<double>(done - seen_.front().second) / time : 0;
    char text[160];
    std::snprintf(text, sizeof text, "%lld of %lld images (%.0f%%), %.1f a second", static_cast<long long>(done),
                  static_cast<long long>(total_), 100.0 * static_cast<double>(done) / static_cast<double>(total_),
                  speed);
    std::string line = text;
    if (speed > 0) line += ", " + duration(static_cast<double>(total_ - done) / speed) + " left";
    if (failed > 0) line += ", " + std::to_string(failed) + " failed";
    return line;
}

}  // namespace itae::command
