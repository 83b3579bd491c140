#include "embedding/machine.hpp"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <sstream>
#include <thread>
#include <vector>

namespace itae {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> lines_of(const fs::path& file) {
    std::vector<std::string> lines;
    std::ifstream opened(file);
    for (std::string line; std::getline(opened, line);) lines.push_back(line);
    return lines;
}

std::vector<std::string> words_of(const std::string& line) {
    std::istringstream stream(line);
    std::vector<std::string> words;
    for (std::string word; stream >> word;) words.push_back(word);
    return words;
}

std::vector<std::string> split(const std::string& text, char separator) {
    std::vector<std::string> parts;
    std::istringstream stream(text);
    for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
    return parts;
}

/// A path of mountinfo, where a blank is a backslash and 040.
std::string unescaped(const std::string& path) {
    std::string text;
    for (std::size_t at = 0; at < path.size(); ++at) {
        const bool is_escape = path[at] == '\\' && at + 3 < path.size() &&
                               std::all_of(path.begin() + static_cast<std::ptrdiff_t>(at) + 1,
                                           path.begin() + static_cast<std::ptrdiff_t>(at) + 4,
                                           [](char one) { return one >= '0' && one <= '7'; });
        if (is_escape) {
            text += static_cast<char>(std::stoi(path.substr(at + 1, 3), nullptr, 8));
            at += 3;
        } else {
            text += path[at];
        }
    }
    return text;
}

/// A group's quota in cores, of version 2 (`max 100000` or `150000 100000`) or 1 (two files; -1 is no limit).
std::optional<double> quota_of(const fs::path& group) {
    std::vector<std::string> words;
    for (const std::string& line : lines_of(group / "cpu.max"))
        for (const std::string& word : words_of(line)) words.push_back(word);
    if (words.empty()) {
        for (const char* name : {"cpu.cfs_quota_us", "cpu.cfs_period_us"})
            for (const std::string& line : lines_of(group / name)) words.push_back(line);
    }
    const auto is_number = [](const std::string& word) {
        return !word.empty() && word.size() < 18 && word.find_first_not_of("0123456789") == std::string::npos &&
               word.find_first_not_of('0') != std::string::npos;
    };
    if (words.size() != 2 || !is_number(words[0]) || !is_number(words[1])) return std::nullopt;
    return std::stod(words[0]) / std::stod(words[1]);
}

int allowed_cores() {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));  // more than 1,024 cores
}

}  // namespace

std::optional<int> cpu_quota(const std::string& root) {
    std::map<std::string, std::string> groups;
    for (const std::string& line : lines_of(fs::path(root) / "proc/self/cgroup")) {
        // 4:cpu,cpuacct:/docker/1f, or 0::/docker/1f in version 2
        const std::size_t first = line.find(':');
        const std::size_t second = first == std::string::npos ? first : line.find(':', first + 1);
        if (second == std::string::npos) continue;
        const std::string controllers = line.substr(first + 1, second - first - 1);
        if (controllers.empty()) groups[""] = line.substr(second + 1);
        for (const std::string& controller : split(controllers, ',')) groups[controller] = line.substr(second + 1);
    }
    double smallest = std::numeric_limits<double>::infinity();
    for (const std::string& line : lines_of(fs::path(root) / "proc/self/mountinfo")) {
        // 32 31 0:29 /docker/1f /sys/fs/cgroup/cpu rw - cgroup cgroup rw
        const std::size_t dash = line.find(" - ");
        if (dash == std::string::npos) continue;
        const std::vector<std::string> mount = words_of(line.substr(0, dash));
        const std::vector<std::string> system = words_of(line.substr(dash + 3));
        if (mount.size() < 5 || system.empty()) continue;
        const std::vector<std::string> options = split(system.back(), ',');
        const bool is_second = system[0] == "cgroup2";
        if (!is_second && !(system[0] == "cgroup" && std::find(options.begin(), options.end(), "cpu") != options.end()))
            continue;
        const auto group = groups.find(is_second ? "" : "cpu");
        // The names of the folders from the mount, whose own group is `mount[3]`, to this process's group.
        std::vector<std::string> above, names;
        for (const std::string& part : split(unescaped(mount[3]), '/'))
            if (!part.empty()) above.push_back(part);
        for (const std::string& part : split(group == groups.end() ? "/" : group->second, '/'))
            if (!part.empty()) names.push_back(part);
        const bool is_below = names.size() >= above.size() && std::equal(above.begin(), above.end(), names.begin()) &&
                              std::find(names.begin(), names.end(), "..") == names.end();
        fs::path folder = fs::path(root) / fs::path(unescaped(mount[4])).relative_path();
        if (const auto quota = quota_of(folder)) smallest = std::min(smallest, *quota);
        for (std::size_t depth = above.size(); is_below && depth < names.size(); ++depth) {
            folder /= names[depth];
            if (const auto quota = quota_of(folder)) smallest = std::min(smallest, *quota);
        }
    }
    if (std::isinf(smallest)) return std::nullopt;
    return std::max(1, static_cast<int>(std::min(std::ceil(smallest), double{max_threads})));
}

int thread_limit() {
    static const std::optional<int> quota = cpu_quota("/");
    return quota && *quota < allowed_cores() ? *quota : 0;
}

int usable_cores() {
    const int limit = thread_limit();
    return limit > 0 ? limit : allowed_cores();
}

}  // namespace itae
