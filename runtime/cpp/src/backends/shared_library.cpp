#include "backends/shared_library.hpp"

#include <cstdlib>
#include <filesystem>

namespace itae {

namespace fs = std::filesystem;

std::vector<std::string> library_candidates(const std::vector<std::string>& names, const std::string& chosen,
                                            const std::string& variable, const std::vector<std::string>& folders) {
    const auto in_folder = [&](const std::string& folder) {
        std::vector<std::string> found;
        found.reserve(names.size());
        for (const std::string& name : names) found.push_back((fs::path(folder) / name).string());
        return found;
    };
    for (const std::string& named : {chosen, variable}) {
        if (named.empty()) continue;
        std::error_code failed;
        if (fs::is_directory(named, failed)) return in_folder(named);
        return {named.find('/') == std::string::npos ? "./" + named : named};  // a name alone: not by the loader's path
    }
    std::vector<std::string> all;
    for (const std::string& folder : folders) {
        if (folder.empty()) continue;
        for (std::string& candidate : in_folder(folder)) all.push_back(std::move(candidate));
    }
    all.insert(all.end(), names.begin(), names.end());
    return all;
}

LibraryHandle open_library(const std::string& candidate, std::string& problem) {
    std::error_code failed;
    std::string path = candidate;
    if (candidate.find('/') != std::string::npos) {
        if (!fs::exists(candidate, failed)) {
            problem = candidate + ": no such file";
            return nullptr;
        }
        // Libraries look for their parts beside themselves, and not where a link to them points.
        path = fs::canonical(candidate, failed).string();
        if (failed) path = candidate;
    }
    LibraryHandle handle(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL));
    if (!handle) {
        const char* reason = dlerror();
        problem = reason == nullptr ? path + " can't be loaded" : std::string(reason);
    }
    return handle;
}

std::vector<std::string> own_folders() {
    std::error_code failed;
    std::vector<std::string> folders{fs::read_symlink("/proc/self/exe", failed).parent_path().string()};
    Dl_info info{};
    if (dladdr(reinterpret_cast<const void*>(&own_folders), &info) != 0 && info.dli_fname != nullptr)
        folders.push_back(fs::weakly_canonical(info.dli_fname, failed).parent_path().string());
    return folders;
}

std::string environment_variable(const char* name) {
    const char* value = std::getenv(name);  // NOLINT(concurrency-mt-unsafe): nothing here writes it
    return value == nullptr ? std::string() : std::string(value);
}

}  // namespace itae
