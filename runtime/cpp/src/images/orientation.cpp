#include "images/orientation.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <string_view>

namespace itae::images {
namespace {

using namespace std::string_view_literals;

constexpr std::uint16_t orientation_tag = 0x0112;
/// Size of a value of each type of TIFF, by its number; 0 if there is no such type.
constexpr std::array<std::uint64_t, 17> type_sizes{0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8};

class Reader {
  public:
    Reader(const Bytes& data, bool big_endian) : data_(data), big_endian_(big_endian) {}

    /// An unsigned number of `size` bytes; nothing if the data ends before.
    std::optional<std::uint64_t> number(std::uint64_t place, std::uint64_t size) const {
        if (place > data_.size() || size > data_.size() - place) {
            return std::nullopt;
        }
        std::uint64_t value = 0;
        for (std::uint64_t index = 0; index < size; ++index) {
            value = value << 8 | data_[place + (big_endian_ ? index : size - 1 - index)];
        }
        return value;
    }

    std::uint64_t size() const { return data_.size(); }

  private:
    const Bytes& data_;
    bool big_endian_;
};

/// The first value of the orientation's tag, at `place`; 1 if it is no whole number.
int value_of(const Reader& reader, std::uint64_t place, std::uint64_t type) {
    const bool is_whole = type == 3 || type == 4 || type == 6 || type == 8 || type == 9 || type == 13 || type == 16;
    const std::uint64_t value = is_whole ? reader.number(place, type_sizes[type]).value_or(1) : 1;
    return value >= 2 && value <= 8 ? static_cast<int>(value) : 1;
}

/// The orientation in the first directory at `place`; nothing if the tag is not there.
///
/// One step of Pillow's after the other: what it skips is skipped, and where it stops reading, this stops.
std::optional<int> in_directory(const Reader& reader, std::uint64_t place) {
    const std::uint64_t count = reader.number(place, 2).value_or(0);
    std::uint64_t total = 0;
    for (std::uint64_t entry = place + 2; entry < place + 2 + 12 * count; entry += 12) {
        const auto tag = reader.number(entry, 2);
        const auto type = reader.number(entry + 2, 2);
        const auto values = reader.number(entry + 4, 4);
        const auto offset = reader.number(entry + 8, 4);
        if (!tag || !type || !values || !offset) {
            return std::nullopt;
        }
        if (*type >= type_sizes.size() || type_sizes[*type] == 0 || *values == 0) {
            continue;
        }
        const std::uint64_t size = *values * type_sizes[*type];
        std::uint64_t data = entry + 8;
        if (size > 4) {
            total += size;
            if (total > reader.size()) {
                continue;
            }
            if (*offset > reader.size() || size > reader.size() - *offset) {
                return std::nullopt;
            }
            data = *offset;
        }
        if (*tag == orientation_tag) {
            return value_of(reader, data, *type);
        }
    }
    return std::nullopt;
}

/// The orientation in EXIF; nothing if the tag is not there, 1 if the data is no EXIF.
std::optional<int> in_exif(Bytes data) {
    constexpr auto prefix = "Exif\0\0"sv;
    for (int twice = 0; twice < 2; ++twice) {
        if (data.size() >= prefix.size() && std::memcmp(data.data(), prefix.data(), prefix.size()) == 0) {
            data.erase(data.begin(), data.begin() + static_cast<std::ptrdiff_t>(prefix.size()));
        }
    }
    if (data.empty()) {
        return std::nullopt;
    }
    if (data.size() < 8) {
        return 1;
    }
    const std::string_view head(reinterpret_cast<const char*>(data.data()), 4);
    const bool is_big = head == "MM\0*"sv || head == "MM*\0"sv || head == "MM\0+"sv;
    if (!is_big && head != "II*\0"sv && head != "II\0*"sv) {
        return 1;
    }
    const Reader reader(data, is_big);
    return in_directory(reader, *reader.number(4, 4));
}

/// The orientation in XMP, as `tiff:Orientation="6"` or `<tiff:Orientation>6`; nothing if it is not there.
std::optional<int> in_xmp(const Bytes& xmp) {
    constexpr auto name = "tiff:Orientation"sv;
    const std::string_view text(reinterpret_cast<const char*>(xmp.data()), xmp.size());
    for (std::size_t place = text.find(name); place != std::string_view::npos; place = text.find(name, place + 1)) {
        std::size_t after = place + name.size();
        if (text.substr(after, 2) == "=\"") {
            after += 2;
        } else if (text.substr(after, 1) == ">") {
            after += 1;
        } else {
            continue;
        }
        if (after < text.size() && text[after] >= '0' && text[after] <= '9') {
            return text[after] - '0';
        }
    }
    return std::nullopt;
}

}  // namespace

int orientation(const Metadata& metadata) {
    std::optional<int> found;
    if (!metadata.exif.empty()) {
        Bytes all;
        for (const Bytes& piece : metadata.exif) {
            all.insert(all.end(), piece.begin(), piece.end());
        }
        found = in_exif(std::move(all));
    }
    return found ? *found : in_xmp(metadata.xmp).value_or(1);
}

Image upright(Image image, int orientation) {
    if (orientation < 2 || orientation > 8) {
        return image;
    }
    const bool swaps = orientation >= 5;  // rows become columns
    const bool from_right = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    const bool from_bottom = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    Image turned;
    turned.height = swaps ? image.width : image.height;
    turned.width = swaps ? image.height : image.width;
    turned.rgb.resize(image.rgb.size());
    constexpr std::int64_t block = 64;  // so that both pictures stay in the cache
    for (std::int64_t top = 0; top < image.height; top += block) {
        for (std::int64_t left = 0; left < image.width; left += block) {
            for (std::int64_t y = top; y < std::min(top + block, image.height); ++y) {
                const std::int64_t y_new = from_bottom ? image.height - 1 - y : y;
                for (std::int64_t x = left; x < std::min(left + block, image.width); ++x) {
                    const std::int64_t x_new = from_right ? image.width - 1 - x : x;
                    const std::int64_t to = swaps ? x_new * turned.width + y_new : y_new * turned.width + x_new;
                    std::memcpy(&turned.rgb[static_cast<std::size_t>(3 * to)],
                                &image.rgb[static_cast<std::size_t>(3 * (y * image.width + x))], 3);
                }
            }
        }
    }
    return turned;
}

}  // namespace itae::images
