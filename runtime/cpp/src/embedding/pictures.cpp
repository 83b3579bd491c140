#include "embedding/pictures.hpp"

#include <sys/stat.h>

#include "contract/open_file.hpp"
#include "itae/error.hpp"

namespace itae {
namespace {

Bytes content_of(const std::string& path) {
    struct stat found {};
    if (path.find('\0') != std::string::npos) throw Error(ErrorKind::image, "has a NUL in its name");
    if (::stat(path.c_str(), &found) != 0 && (errno == ENOENT || errno == ENOTDIR))
        throw Error(ErrorKind::image, "does not exist, or is a link to what does not");
    try {
        OpenFile file(path);
        if (file.size() > max_image_bytes) {
            throw Error(ErrorKind::image,
                        "has " + std::to_string(file.size()) + " bytes, more than " + std::to_string(max_image_bytes));
        }
        return file.read_all();
    } catch (const Error& error) {
        if (error.kind() != ErrorKind::io) throw;
        if (!S_ISREG(found.st_mode)) throw Error(ErrorKind::image, "is a folder or a device, not a file");
        throw Error(ErrorKind::image, std::string("can't be decoded (") + error.what() + ")");
    }
}

}  // namespace

void prepare_file(const std::string& path, const Preprocessing& how, void* out) {
    const Bytes content = content_of(path);
    prepare_content(content, how, out);
}

void prepare_content(ByteView content, const Preprocessing& how, void* out) {
    prepare_image(decode(content, ""), how, out);
}

void prepare_image(const Image& image, const Preprocessing& how, void* out) {
    const bool is_picture = image.height > 0 && image.width > 0 && image.height <= max_pixels / image.width &&
                            image.rgb.size() == static_cast<std::size_t>(3 * image.height * image.width);
    if (!is_picture) {
        throw Error(ErrorKind::image, "is " + std::to_string(image.height) + " x " + std::to_string(image.width) +
                                          " pixels of " + std::to_string(image.rgb.size()) +
                                          " bytes: give height x width x 3 bytes");
    }
    to_input(resize_and_fit(image, how), how, out);
}

}  // namespace itae
