#include "itae/preprocess.hpp"

#include <cmath>
#include <cstring>

#include "images/resize.hpp"
#include "itae/error.hpp"

namespace itae {
namespace {

using images::Size;

constexpr std::int64_t max_side = 1 << 21;  // of a resized picture: at 224, a strip beyond 8,192 : 1 is refused

/// The smallest size of the picture's aspect that covers `cover`, the longer side rounded down.
Size covering(Size picture, Size cover) {
    if (cover.height * picture.width >= cover.width * picture.height) {
        return {cover.height, cover.height * picture.width / picture.height};
    }
    return {cover.width * picture.height / picture.width, cover.width};
}

/// The largest size of the picture's aspect that `box` holds, the shorter side rounded down, at least 1.
Size contained(Size picture, Size box) {
    if (box.height * picture.width <= box.width * picture.height) {
        return {box.height, std::max<std::int64_t>(1, box.height * picture.width / picture.height)};
    }
    return {std::max<std::int64_t>(1, box.width * picture.height / picture.width), box.width};
}

images::Kernel kernel_of(const Preprocessing& how) {
    if (how.resize_filter != "bicubic" && how.resize_filter != "bilinear") {
        throw Error(ErrorKind::usage, "preprocessing has no resize_filter of bicubic or bilinear");
    }
    return how.resize_filter == "bicubic" ? images::Kernel::bicubic : images::Kernel::bilinear;
}

/// The picture in the middle of one of the mean's colour.
std::vector<std::uint8_t> padded(const Image& image, Size size, const Preprocessing& how) {
    const Size box{how.height, how.width};
    const std::vector<std::uint8_t> inner = images::resized_part(image, size, 0, 0, size, kernel_of(how));
    std::vector<std::uint8_t> result(static_cast<std::size_t>(3 * box.height * box.width));
    for (std::size_t channel = 0; channel < 3; ++channel) {
        const auto colour = static_cast<std::uint8_t>(std::floor(how.mean[channel] / how.scale + 0.5));
        for (std::size_t place = channel; place < result.size(); place += 3) {
            result[place] = colour;
        }
    }
    const std::int64_t top = (box.height - size.height) / 2;
    const std::int64_t left = (box.width - size.width) / 2;
    const auto stride = static_cast<std::size_t>(3 * size.width);
    for (std::int64_t y = 0; y < size.height; ++y) {
        std::memcpy(&result[static_cast<std::size_t>(3 * ((top + y) * box.width + left))],
                    &inner[static_cast<std::size_t>(y) * stride], stride);
    }
    return result;
}

}  // namespace

std::vector<std::uint8_t> resize_and_fit(const Image& image, const Preprocessing& how) {
    const Size picture{image.height, image.width};
    const Size box{how.height, how.width};
    if (picture.height < 1 || picture.width < 1 ||
        image.rgb.size() != static_cast<std::size_t>(3 * picture.height * picture.width)) {
        throw Error(ErrorKind::usage, "an image holds height x width x 3 bytes, and at least one pixel");
    }
    if (how.fit == "crop" && how.resize_cover) {
        const Size cover{(*how.resize_cover)[0], (*how.resize_cover)[1]};
        const Size size = covering(picture, cover);
        if (std::max(size.height, size.width) > max_side) {
            throw Error(ErrorKind::image, "has " + std::to_string(picture.width) + " x " +
                                              std::to_string(picture.height) +
                                              " pixels, too narrow a strip to be resized to cover " +
                                              std::to_string(cover.width) + " x " + std::to_string(cover.height));
        }
        return images::resized_part(image, size, (size.height - box.height) / 2, (size.width - box.width) / 2, box,
                                    kernel_of(how));
    }
    if (how.fit == "squash") {
        return images::resized_part(image, box, 0, 0, box, kernel_of(how));
    }
    if (how.fit == "pad") {
        return padded(image, contained(picture, box), how);
    }
    throw Error(ErrorKind::usage, "preprocessing has no fit, or fit crop without resize_cover");
}

void to_input(const std::vector<std::uint8_t>& pixels, const Preprocessing& how, void* out) {
    const auto count = static_cast<std::size_t>(how.height * how.width);
    if (pixels.size() != 3 * count) {
        throw Error(ErrorKind::usage, "a picture of " + std::to_string(pixels.size()) + " bytes for an input of " +
                                          std::to_string(how.height) + " x " + std::to_string(how.width) + " x 3");
    }
    if (how.uint8_input) {
        std::memcpy(out, pixels.data(), pixels.size());
        return;
    }
    std::array<std::array<float, 256>, 3> normalised{};  // of each value of each channel, rounded as in Python
    for (std::size_t channel = 0; channel < 3; ++channel) {
        const auto mean = static_cast<float>(how.mean[channel]);
        const auto stddev = static_cast<float>(how.stddev[channel]);
        for (std::size_t value = 0; value < 256; ++value) {
            const auto scaled = static_cast<float>(static_cast<double>(value) * how.scale);
            normalised[channel][value] = (scaled - mean) / stddev;
        }
    }
    auto* values = static_cast<float*>(out);
    const std::uint8_t* pixel = pixels.data();
    for (std::size_t place = 0; place < count; ++place, pixel += 3) {
        values[place] = normalised[0][pixel[0]];
        values[count + place] = normalised[1][pixel[1]];
        values[2 * count + place] = normalised[2][pixel[2]];
    }
}

}  // namespace itae
