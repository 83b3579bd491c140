#include <new>

#include "images/formats.hpp"
#include "images/jpeg.hpp"
#include "images/orientation.hpp"
#include "images/png.hpp"
#include "images/refusal.hpp"
#include "images/webp.hpp"
#include "itae/error.hpp"
#include "itae/image.hpp"

namespace itae {
namespace images {
namespace {

/// A number with commas between each three digits.
std::string with_commas(std::uint64_t number) {
    std::string text = std::to_string(number);
    for (std::size_t place = text.size(); place > 3; place -= 3) {
        text.insert(place - 3, ",");
    }
    return text;
}

Decoded decode_any(ByteView data) {
    if (data.size == 0) {
        throw Refusal("is empty (0 bytes)");
    }
    if (data.size > max_image_bytes) {
        throw Refusal("has " + with_commas(data.size) + " bytes, more than " + with_commas(max_image_bytes));
    }
    switch (format_of(data)) {
        case Format::jpeg:
            return decode_jpeg(data);
        case Format::png:
            return decode_png(data);
        case Format::webp:
            return decode_webp(data);
        case Format::none:
            break;
    }
    throw Refusal(what_else(data));
}

}  // namespace

void check_size(std::int64_t height, std::int64_t width) {
    if (height > 0 && width > max_pixels / height) {
        throw TooLarge("has " + with_commas(static_cast<std::uint64_t>(height) * static_cast<std::uint64_t>(width)) +
                       " pixels (" + std::to_string(width) + " x " + std::to_string(height) + "), more than " +
                       with_commas(max_pixels));
    }
}

void refuse_damaged(const std::string& reason) { throw Refusal("can't be decoded (" + reason + ")"); }

void refuse_truncated() { refuse_damaged("image file is truncated"); }

}  // namespace images

Image decode(ByteView encoded, const std::string& name) {
    const std::string prefix = name.empty() ? "" : name + ": ";
    try {
        images::Decoded decoded = images::decode_any(encoded);
        return images::upright(std::move(decoded.image), decoded.orientation);
    } catch (const images::Refusal& refusal) {
        throw Error(ErrorKind::image, plain(prefix + refusal.what()));
    } catch (const std::bad_alloc&) {
        throw Error(ErrorKind::image, plain(prefix + "can't be decoded (not enough memory)"));
    }
}

}  // namespace itae
