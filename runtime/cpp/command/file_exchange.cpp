#include "file_exchange.hpp"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <regex>
#include <system_error>
#include <thread>
#include <tuple>
#include <utility>

#include "contract/sha256.hpp"
#include "itae/error.hpp"
#include "names.hpp"

namespace itae::command {
namespace {

namespace fs = std::filesystem;

constexpr const char* plan_name = "plan.json";
constexpr const char* older_name = "older";
constexpr std::size_t short_name = 60;  // bytes from which a hidden name can be made by additions
constexpr std::uint64_t max_plan = 1U << 20U;
constexpr auto patience = std::chrono::seconds(10);

/// Inode, size and time of the last change of a file: what stays when it is renamed; none if there is no file.
using Identity = std::optional<std::tuple<ino_t, off_t, time_t, long>>;

Identity identity(const std::string& path) {
    struct stat found {};
    if (::lstat(path.c_str(), &found) != 0) {
        if (errno == ENOENT || errno == ENOTDIR) return std::nullopt;
        cannot_write(path, errno);
    }
    return std::make_tuple(found.st_ino, found.st_size, found.st_mtim.tv_sec, found.st_mtim.tv_nsec);
}

bool exists(const std::string& path) {
    struct stat found {};
    return ::lstat(path.c_str(), &found) == 0;
}

std::string folder_of(const std::string& path) {
    const std::string parent = fs::path(path).parent_path().string();
    return parent.empty() ? "." : parent;
}

std::string beside(const std::string& path, const std::string& name) {
    return (fs::path(folder_of(path)) / name).string();
}

void move(const std::string& from, const std::string& to) {
    if (::rename(from.c_str(), to.c_str()) != 0) cannot_write(to, errno);
}

void remove_file(const std::string& path) {
    if (::unlink(path.c_str()) != 0 && errno != ENOENT) cannot_write(path, errno);
}

/// Make renames in a folder durable, where its file system can; the files in it are whole in any case.
void sync_folder(const std::string& folder) {
    const Descriptor opened(::open(folder.c_str(), O_RDONLY | O_CLOEXEC));
    if (opened) ::fsync(opened.get());
}

std::string random_digits(std::size_t count) {
    std::random_device device;
    std::string text;
    while (text.size() < count) text += "0123456789abcdef"[device() & 15U];
    return text;
}

std::string this_host() {
    std::array<char, 256> name{};
    if (::gethostname(name.data(), name.size() - 1) != 0) return "unknown";
    std::string text = name.data();
    for (char& one : text)
        if (!((one >= 'a' && one <= 'z') || (one >= 'A' && one <= 'Z') || (one >= '0' && one <= '9') || one == '.'))
            one = '_';
    return text.substr(0, 40);
}

bool is_alive(long process) { return ::kill(static_cast<pid_t>(process), 0) == 0 || errno != ESRCH; }

enum class Lock { held, taken, none };

/// An open folder, which this process has locked or not.
struct Locked {
    Descriptor folder;
    Lock state;
};

/// Take the lock of a folder; it is another's, or the file system may have no locks.
Locked locked(const std::string& folder) {
    Descriptor opened(::open(folder.c_str(), O_RDONLY | O_CLOEXEC));
    if (!opened) cannot_write(folder, errno);
    if (::flock(opened.get(), LOCK_EX | LOCK_NB) == 0) return {std::move(opened), Lock::held};
    return {std::move(opened), errno == EWOULDBLOCK ? Lock::taken : Lock::none};
}

void remove_abandoned(const std::string& parent) {
    std::error_code failed;
    const std::string host = std::regex_replace(this_host(), std::regex("\\."), "\\.");
    const std::regex ours("\\..+\\.work-" + host + "-([0-9]{1,9})-[a-z0-9_]+");
    for (fs::directory_iterator at(parent, failed), end; !failed && at != end; at.increment(failed)) {
        const std::string name = at->path().filename().string();
        std::smatch found;
        if (name.find(".work-") == std::string::npos || !std::regex_match(name, found, ours)) continue;
        std::error_code ignored;
        if (is_alive(std::stol(found[1])) || !fs::is_directory(at->symlink_status(ignored))) continue;
        try {
            // A container may share the host's name and not its process numbers: then the lock tells.
            const Locked lock = locked(at->path().string());
            if (lock.state != Lock::taken) fs::remove_all(at->path(), ignored);
        } catch (const Error&) {  // of another user, or gone
        }
    }
}

/// Enough to undo an exchange.
struct Plan {
    std::string seal;
    std::vector<std::string> older;  ///< names of the files that were there, but the seal
    std::vector<std::string> fresh;  ///< names of the files that come and were not there, but the seal
    bool had_seal = false;
    std::string host;
    long process = 0;
    std::string token;

    std::string as_json() const {
        const nlohmann::ordered_json fields{{"seal", seal},         {"older", older}, {"fresh", fresh},
                                            {"had_seal", had_seal}, {"host", host},   {"process", process},
                                            {"token", token}};
        return fields.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
    }
};

/// The plan of an exchange; none if there is none, as after the end of an exchange.
std::optional<Plan> read_plan(const std::string& folder) {
    const std::string path = folder + "/" + plan_name;
    if (!exists(path)) return std::nullopt;
    try {
        const Bytes content = read_file(path, max_plan);
        const nlohmann::json fields = nlohmann::json::parse(content.begin(), content.end());
        Plan plan;
        fields.at("seal").get_to(plan.seal);
        fields.at("older").get_to(plan.older);
        fields.at("fresh").get_to(plan.fresh);
        fields.at("had_seal").get_to(plan.had_seal);
        fields.at("host").get_to(plan.host);
        fields.at("process").get_to(plan.process);
        fields.at("token").get_to(plan.token);
        std::vector<std::string> names{plan.seal};
        names.insert(names.end(), plan.older.begin(), plan.older.end());
        names.insert(names.end(), plan.fresh.begin(), plan.fresh.end());
        const auto is_name = [](const std::string& name) {
            return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos;
        };
        if (std::all_of(names.begin(), names.end(), is_name)) return plan;
    } catch (const nlohmann::json::exception&) {
    }
    throw Error(ErrorKind::io,
                path + " is damaged: move the files of " + folder + "/" + older_name + " to where they belong");
}

/// Move an older file back, if it was moved.
void put_back(const std::string& older, const std::string& place) {
    if (!exists(older)) return;
    if (::rename(older.c_str(), place.c_str()) == 0) return;
    remove_file(place);  // what made the exchange fail may do so again: another way
    if (::link(older.c_str(), place.c_str()) != 0) cannot_write(place, errno);
}

/// Put the older files back, the seal last; it may be called again.
void restore(const std::string& folder, const Plan& plan) {
    const std::string older = folder + "/" + older_name + "/";
    if (!plan.had_seal || exists(older + plan.seal)) remove_file(beside(folder, plan.seal));
    for (const std::string& name : plan.fresh) remove_file(beside(folder, name));
    for (const std::string& name : plan.older) put_back(older + name, beside(folder, name));
    sync_folder(folder_of(folder));
    put_back(older + plan.seal, beside(folder, plan.seal));
    sync_folder(folder_of(folder));
}

/// Remove a hidden folder; what can't be removed is without its plan, and means nothing.
void close(const std::string& folder) {
    ::unlink((folder + "/" + plan_name).c_str());
    std::error_code ignored;
    fs::remove_all(folder, ignored);
}

std::string exchange_folder(const std::string& seal) { return beside(seal, hidden_name(base_name(seal), "exchange")); }

/// Undo an exchange whose process was killed; false where it lives.
bool recovered(const std::string& folder) {
    const Identity before = identity(folder);
    if (!before) return true;
    try {
        const Locked lock = locked(folder);
        if (identity(folder) != before) return false;  // the lock may be of a folder that is gone
        const std::optional<Plan> plan = read_plan(folder);
        const bool runs_elsewhere =
            plan && plan->host == this_host() && plan->process != ::getpid() && is_alive(plan->process);
        if (lock.state == Lock::taken || (lock.state == Lock::none && runs_elsewhere)) return false;
        if (plan && !exists(beside(folder, plan->seal))) restore(folder, *plan);
        close(folder);
    } catch (const Error&) {
        if (!identity(folder)) return true;  // its process has ended the exchange meanwhile
        throw;
    }
    return true;
}

}  // namespace

Descriptor::Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
    std::swap(number_, other.number_);
    return *this;
}
Descriptor::~Descriptor() {
    if (number_ >= 0) ::close(number_);
}

WorkFolder::WorkFolder(const std::string& path) {
    const std::string parent = folder_of(path);
    remove_abandoned(parent);
    const std::string prefix =
        hidden_name(base_name(path), "work-" + this_host() + "-" + std::to_string(::getpid()) + "-");
    do {
        path_ = beside(path, prefix + random_digits(8));
    } while (::mkdir(path_.c_str(), 0700) != 0 && errno == EEXIST);
    if (!exists(path_)) cannot_write(path, errno);
    lock_ = std::move(locked(path_).folder);
}

WorkFolder::~WorkFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
}

std::string hidden_name(const std::string& name, const std::string& suffix) {
    if (name.size() <= short_name) return "." + name + "." + suffix;
    const std::string digits = sha256(ByteView(reinterpret_cast<const std::uint8_t*>(name.data()), name.size()));
    return "." + digits.substr(0, 32) + "." + suffix;
}

void sync_file(int descriptor, const std::string& path) {
    if (::fsync(descriptor) != 0 && errno != EINVAL && errno != ENOTSUP && errno != ENOSYS) cannot_write(path, errno);
}

void publish(const std::string& seal, const std::vector<std::string>& names, const std::string& work) {
    const std::string folder = exchange_folder(seal);
    const auto deadline = std::chrono::steady_clock::now() + patience;
    while (!recovered(folder)) {
        if (std::chrono::steady_clock::now() > deadline)
            throw Error(ErrorKind::io, "can't write " + seal + ": another run is writing it; wait for it");
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    Plan plan;
    plan.seal = base_name(seal);
    plan.host = this_host();
    plan.process = ::getpid();
    plan.token = random_digits(16);
    for (const std::string& name : names) {
        const bool was_there = identity(beside(seal, name)).has_value();
        if (name == plan.seal)
            plan.had_seal = was_there;
        else
            (was_there ? plan.older : plan.fresh).push_back(name);
    }
    // The hidden folder appears with its plan in it, and locked.
    const std::string staging = work + "/exchange";
    if (::mkdir(staging.c_str(), 0777) != 0 || ::mkdir((staging + "/" + older_name).c_str(), 0777) != 0)
        cannot_write(seal, errno);
    const std::string text = plan.as_json();
    const Descriptor file(::open((staging + "/" + plan_name).c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
    if (!file || ::write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()))
        cannot_write(seal, errno);
    sync_file(file.get(), seal);
    const Locked lock = locked(staging);
    const std::string parent = folder_of(seal);
    const std::string older = folder + "/" + older_name + "/";
    const std::string made = work + "/";
    bool has_begun = false;
    try {
        move(staging, folder);
        has_begun = true;
        sync_folder(parent);
        if (plan.had_seal) move(seal, older + plan.seal);  // from here on readers refuse
        sync_folder(parent);
        for (const std::string& name : plan.older) move(beside(seal, name), older + name);
        for (const std::string& name : names)
            if (name != plan.seal) move(made + name, beside(seal, name));
        sync_folder(parent);
        move(made + plan.seal, seal);  // from here on readers find the new set
        sync_folder(parent);
    } catch (const Error& error) {
        if (has_begun) {
            try {
                restore(folder, plan);
                close(folder);
            } catch (const Error&) {
                throw Error(ErrorKind::io,
                            std::string(error.what()) + "; " + plan.seal +
                                " is missing: run the same command again, which first puts the older files "
                                "back from " +
                                base_name(folder));
            }
        }
        throw;
    }
    close(folder);
}

void recover(const std::string& seal) {
    try {
        recovered(exchange_folder(seal));
    } catch (const Error&) {  // publish says it
    }
}

void cannot_write(const std::string& path, int number) {
    std::error_code failed;
    const std::string parent = folder_of(path);
    const std::string reason = fs::is_directory(parent, failed)
                                   ? std::generic_category().message(number)
                                   : "the folder " + parent + " does not exist; make it first";
    throw Error(ErrorKind::io, "can't write " + path + ": " + reason);
}

}  // namespace itae::command
