#include "backends/library_log.hpp"

#include <algorithm>
#include <sstream>
#include <vector>

namespace itae {
namespace {

constexpr std::size_t kept = 100;
constexpr std::size_t quoted = 3;
constexpr std::size_t max_chars = 1200;  // of one error: TensorRT quotes whole tensors

/// The message with single spaces for all white space, cut where it is very long.
std::string shortened(const std::string& message) {
    std::istringstream words(message);
    std::string line;
    for (std::string word; words >> word;) line += (line.empty() ? "" : " ") + word;
    return line.size() <= max_chars ? line : line.substr(0, max_chars) + "...";
}

}  // namespace

void LibraryLog::forget() {
    const std::lock_guard<std::mutex> lock(mutex_);
    errors_.clear();
}

void LibraryLog::record(const char* message) noexcept {
    try {
        std::string line = shortened(message == nullptr ? "" : message);
        const std::lock_guard<std::mutex> lock(mutex_);
        errors_.push_back(std::move(line));
        if (errors_.size() > kept) errors_.pop_front();
    } catch (...) {
        // The library calls this where nothing may be thrown.
    }
}

std::string LibraryLog::last_errors() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<std::string> latest_first;
    for (auto error = errors_.rbegin(); error != errors_.rend() && latest_first.size() < quoted; ++error)
        if (std::find(latest_first.begin(), latest_first.end(), *error) == latest_first.end())
            latest_first.push_back(*error);
    std::string all;
    for (auto error = latest_first.rbegin(); error != latest_first.rend(); ++error)
        all += (all.empty() ? "" : "; ") + *error;
    return all.empty() ? "it gave no reason" : all;
}

}  // namespace itae
