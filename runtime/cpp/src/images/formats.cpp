#include "images/formats.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <set>
#include <string_view>

namespace itae::images {
namespace {

using namespace std::string_view_literals;

constexpr std::string_view read_formats = "JPEG, PNG, WEBP";

struct Magic {
    std::size_t place;
    std::string_view bytes;
    std::string_view name;
};

constexpr std::array<Magic, 6> tiffs_and_gifs{{
    {0, "GIF87a"sv, "GIF"},
    {0, "GIF89a"sv, "GIF"},
    {0, "II*\0"sv, "TIFF"},
    {0, "MM\0*"sv, "TIFF"},
    {0, "II+\0"sv, "TIFF"},  // with offsets of 8 bytes
    {0, "MM\0+"sv, "TIFF"},
}};

constexpr std::array<Magic, 22> others{{
    {4, "ftypcrx"sv, "a camera's raw file"},
    {8, "CR\x02"sv, "a camera's raw file"},
    {0, "IIU\0"sv, "a camera's raw file"},
    {0, "IIRO"sv, "a camera's raw file"},
    {0, "FUJIFILMCCD-RAW"sv, "a camera's raw file"},
    {4, "ftyp"sv, "a video"},
    {4, "moov"sv, "a video"},
    {0, "\x1a\x45\xdf\xa3"sv, "a video"},
    {8, "AVI "sv, "a video"},
    {0, "\xff\x0a"sv, "JPEG XL"},
    {0, "\0\0\0\x0cJXL "sv, "JPEG XL"},
    {0, "\0\0\0\x0cjP  "sv, "JPEG 2000"},
    {0, "\xff\x4f\xff\x51"sv, "JPEG 2000"},
    {128, "DICM"sv, "DICOM"},
    {0, "v/1\x01"sv, "OpenEXR"},
    {0, "\0\0\1\0"sv, "an icon"},
    {0, "%PDF"sv, "PDF"},
    {0, "8BPS"sv, "Photoshop's PSD"},
    {0, "PK\x03\x04"sv, "a zip file"},
    {0, "\x1f\x8b"sv, "a gzip file"},
    {0, "\0\x05\x16\x07"sv, "macOS's data about a file (AppleDouble)"},
    {0, "version https://git-lfs"sv, "a pointer of Git LFS (fetch the file with git lfs pull)"},
}};

constexpr std::array<Magic, 4> texts{{
    {0, "<svg"sv, "SVG"},
    {0, "<html"sv, "an HTML page"},
    {0, "<!doctype html"sv, "an HTML page"},
    {0, "<?xml"sv, "XML"},
}};

std::string_view part(std::string_view text, std::size_t place, std::size_t size = std::string_view::npos) {
    return place < text.size() ? text.substr(place, size) : std::string_view();
}

bool begins(std::string_view text, std::string_view beginning) { return text.substr(0, beginning.size()) == beginning; }

std::uint32_t number(std::string_view text, bool big_endian) {
    std::uint32_t value = 0;
    for (std::size_t index = 0; index < text.size(); ++index) {
        const auto byte = static_cast<std::uint8_t>(text[big_endian ? index : text.size() - 1 - index]);
        value = value << 8 | byte;
    }
    return value;
}

std::string_view head(ByteView data) {
    return {reinterpret_cast<const char*>(data.data), std::min(data.size, head_bytes)};
}

bool is_bmp(std::string_view start) {
    // Sizes of the second header; the letters BM alone begin many texts.
    static const std::set<std::uint32_t> headers{12, 16, 40, 52, 56, 64, 108, 124};
    return begins(start, "BM") && headers.count(number(part(start, 14, 4), false)) > 0;
}

/// AVIF or HEIC by the brands of an ISO file, the major one first; a major `mif1` may be either. Empty if neither.
std::string_view format_of_brands(std::string_view start) {
    static const std::set<std::string_view> avif{"avif", "avis"};
    static const std::set<std::string_view> heic{"heic", "heix", "heim", "heis", "hevc", "hevx", "hevm", "hevs"};
    if (part(start, 4, 4) != "ftyp") {
        return {};
    }
    const std::string_view major = part(start, 8, 4);
    const bool is_container = major == "mif1" || major == "msf1";
    if (avif.count(major) > 0) {
        return "AVIF";
    }
    if (heic.count(major) == 0 && !is_container) {
        return {};
    }
    bool has_avif = false;
    bool has_heic = false;
    const std::size_t end = std::min<std::size_t>(number(start.substr(0, 4), true), start.size());
    for (std::size_t place = 16; place + 4 <= end; place += 4) {
        has_avif |= avif.count(start.substr(place, 4)) > 0;
        has_heic |= heic.count(start.substr(place, 4)) > 0;
    }
    return is_container && !has_heic && has_avif ? "AVIF" : "HEIC";
}

/// The name of a format that Python reads and this library doesn't; empty if it is none.
std::string_view format_of_python(std::string_view start) {
    if (is_bmp(start)) {
        return "BMP";
    }
    if (part(start, 8, 3) != "CR\x02") {  // a raw file of Canon's, in the form of a TIFF
        for (const Magic& magic : tiffs_and_gifs) {
            if (begins(start, magic.bytes)) {
                return magic.name;
            }
        }
    }
    return format_of_brands(start);
}

std::string_view text_format(std::string_view start) {
    std::string lower(start);
    std::transform(lower.begin(), lower.end(), lower.begin(), [](char letter) {
        return letter >= 'A' && letter <= 'Z' ? static_cast<char>(letter + 32) : letter;
    });
    const std::size_t first = start.find_first_not_of("\xef\xbb\xbf\r\n\t ");
    if (first == std::string_view::npos || start[first] != '<') {
        return {};
    }
    for (const Magic& tag : texts) {
        if (lower.find(tag.bytes) != std::string::npos) {
            return tag.name;
        }
    }
    return {};
}

}  // namespace

std::string_view picture_format(ByteView data) {
    switch (format_of(data)) {
        case Format::jpeg:
            return "JPEG";
        case Format::png:
            return "PNG";
        case Format::webp:
            return "WEBP";
        case Format::none:
            break;
    }
    return format_of_python(head(data));
}

std::string_view other_format(ByteView data) {
    const std::string_view start = head(data);
    for (const Magic& magic : others) {
        if (begins(part(start, magic.place), magic.bytes)) {
            return magic.name;
        }
    }
    return text_format(start);
}

Format format_of(ByteView data) {
    const std::string_view start = head(data);
    if (begins(start, "RIFF") && part(start, 8, 4) == "WEBP") {
        return Format::webp;
    }
    if (part(start, 8, 3) == "CR\x02") {
        return Format::none;
    }
    if (begins(start, "\xff\xd8\xff")) {
        return Format::jpeg;
    }
    return begins(start, "\x89PNG\r\n\x1a\n"sv) ? Format::png : Format::none;
}

std::string what_else(ByteView data) {
    const std::string_view start = head(data);
    if (format_of(data) == Format::none) {
        std::string_view name = picture_format(data);
        if (name.empty()) {
            name = other_format(data);
        }
        if (!name.empty()) {
            return "is " + std::string(name) + ", which isn't read, only " + std::string(read_formats);
        }
    }
    if (std::all_of(start.begin(), start.end(), [](char byte) { return byte == 0; })) {
        return "holds only zeros at its beginning: damaged";
    }
    return "is damaged, or none of " + std::string(read_formats);
}

}  // namespace itae::images
