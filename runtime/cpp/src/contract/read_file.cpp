#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <new>
#include <system_error>
#include <utility>

#include "contract/open_file.hpp"
#include "itae/bytes.hpp"

namespace itae {
namespace {

[[noreturn]] void refuse(const std::string& path, const std::string& reason) { throw CantRead(path, reason); }

std::string reason_of(int number) { return std::generic_category().message(number); }

}  // namespace

OpenFile::OpenFile(const std::string& path) : path_(path) {
    if (path.find('\0') != std::string::npos) refuse(path, "a name can't hold a NUL");
    // Without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever.
    descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor_ < 0) refuse(path, reason_of(errno));
    struct stat found {};
    const int failed = ::fstat(descriptor_, &found) == 0 ? 0 : errno;
    if (failed == 0 && S_ISREG(found.st_mode)) {
        size_ = static_cast<std::uint64_t>(found.st_size);
        return;
    }
    ::close(descriptor_);
    if (failed != 0) refuse(path, reason_of(failed));
    refuse(path, S_ISDIR(found.st_mode) ? reason_of(EISDIR) : "it is not a regular file");
}

OpenFile::OpenFile(OpenFile&& other) noexcept
    : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)), size_(other.size_) {}

OpenFile::~OpenFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
}

std::size_t OpenFile::read(std::uint8_t* out, std::size_t count) {
    std::size_t done = 0;
    while (done < count) {
        const ssize_t got = ::read(descriptor_, out + done, count - done);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) refuse(path_, reason_of(errno));
        if (got == 0) break;
        done += static_cast<std::size_t>(got);
    }
    return done;
}

void OpenFile::rewind() {
    if (::lseek(descriptor_, 0, SEEK_SET) != 0) refuse(path_, reason_of(errno));
}

Bytes OpenFile::read_all() {
    Bytes content;
    try {
        content.resize(size_);
    } catch (const std::exception&) {  // bad_alloc, length_error
        refuse(path_, "its " + std::to_string(size_) + " bytes do not fit into this machine's memory");
    }
    content.resize(read(content.data(), content.size()));
    return content;
}

Bytes read_file(const std::string& path, std::uint64_t max_bytes) {
    OpenFile file(path);
    if (file.size() > max_bytes) {
        refuse(path, "it has " + std::to_string(file.size()) + " bytes, more than " + std::to_string(max_bytes));
    }
    return file.read_all();
}

}  // namespace itae
