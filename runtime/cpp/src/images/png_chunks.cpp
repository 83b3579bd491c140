#include "images/png_chunks.hpp"

#include <zlib.h>

#include <algorithm>
#include <cstring>
#include <string_view>

#include "images/refusal.hpp"

namespace itae::images {
namespace {

using namespace std::string_view_literals;

constexpr std::size_t signature_size = 8;
constexpr std::size_t max_text = 1 << 20;  // of a compressed text, unpacked: Pillow refuses a longer one
constexpr auto end_chunk = "\0\0\0\0IEND\xae\x42\x60\x82"sv;

std::uint32_t number_at(const std::uint8_t* place) {
    return std::uint32_t{place[0]} << 24 | std::uint32_t{place[1]} << 16 | std::uint32_t{place[2]} << 8 | place[3];
}

bool is_in_name(std::uint8_t letter) {
    return (letter >= 'a' && letter <= 'z') || (letter >= 'A' && letter <= 'Z') || (letter >= '0' && letter <= '9') ||
           letter == '_';
}

struct Chunk {
    const std::uint8_t* start = nullptr;  ///< of its length
    std::string_view name;
    ByteView content;       ///< as far as the file holds it
    bool is_whole = false;  ///< all of its content is there
    bool is_sound = false;  ///< and its checksum is right
    std::size_t size = 0;   ///< of all of it, as far as the file holds it
};

/// The chunk at `place`; nothing where the file has no 8 bytes for its head.
std::optional<Chunk> chunk_at(ByteView data, std::size_t place, bool check) {
    if (place > data.size || data.size - place < 8) {
        return std::nullopt;
    }
    Chunk chunk;
    chunk.start = data.data + place;
    const std::size_t length = number_at(chunk.start);
    const std::size_t rest = data.size - place - 8;
    chunk.name = {reinterpret_cast<const char*>(chunk.start + 4), 4};
    chunk.content = {chunk.start + 8, std::min(length, rest)};
    chunk.is_whole = length <= rest;
    chunk.size = 8 + chunk.content.size + std::min<std::size_t>(4, rest - chunk.content.size);
    if (check && chunk.size == length + 12) {
        const auto computed = crc32_z(0, chunk.start + 4, length + 4);
        chunk.is_sound = computed == number_at(chunk.start + 8 + length);
    }
    return chunk;
}

bool has_name(const Chunk& chunk) {
    return std::all_of(chunk.name.begin(), chunk.name.end(),
                       [](char letter) { return is_in_name(static_cast<std::uint8_t>(letter)); });
}

std::string_view text_of(ByteView content) { return {reinterpret_cast<const char*>(content.data), content.size}; }

/// Cut off the text up to the next NUL; nothing if there is none.
std::optional<std::string_view> cut(std::string_view& rest) {
    const std::size_t end = rest.find('\0');
    if (end == std::string_view::npos) {
        return std::nullopt;
    }
    const std::string_view first = rest.substr(0, end);
    rest.remove_prefix(end + 1);
    return first;
}

/// Unpack zlib's format; empty if it is damaged.
Bytes unpacked(std::string_view packed) {
    Bytes result(max_text);
    z_stream stream{};
    if (inflateInit(&stream) != Z_OK) {
        return {};
    }
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(packed.data()));  // zlib doesn't write there
    stream.avail_in = static_cast<uInt>(packed.size());
    stream.next_out = result.data();
    stream.avail_out = static_cast<uInt>(result.size());
    const int status = inflate(&stream, Z_NO_FLUSH);
    const std::size_t size = result.size() - stream.avail_out;
    const bool is_too_long = stream.avail_in > 0 && status != Z_STREAM_END;
    inflateEnd(&stream);
    if (is_too_long && status >= Z_OK) {
        refuse_damaged("text of more than 1 MiB");
    }
    result.resize(status >= Z_OK || status == Z_BUF_ERROR ? size : 0);
    return result;
}

Bytes bytes_of(std::string_view text) { return {text.begin(), text.end()}; }

/// ImageMagick's way to write EXIF: hexadecimal digits from the fourth line on. Empty if they are none.
Bytes raw_profile(std::string_view text) {
    for (int line = 0; line < 3; ++line) {
        const std::size_t end = text.find('\n');
        text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    }
    Bytes result;
    int high = -1;
    for (const char letter : text) {
        const auto digits = "0123456789abcdef"sv;
        const std::size_t digit = digits.find(letter >= 'A' && letter <= 'F' ? static_cast<char>(letter + 32) : letter);
        if (letter == '\n' || letter == ' ' || letter == '\r' || letter == '\t') {
            continue;
        }
        if (digit == std::string_view::npos) {
            return {};
        }
        if (high < 0) {
            high = static_cast<int>(digit);
        } else {
            result.push_back(static_cast<std::uint8_t>(high * 16 + static_cast<int>(digit)));
            high = -1;
        }
    }
    return high < 0 ? result : Bytes();
}

/// Metadata of a text chunk, if it is any that counts.
void take_text(const Chunk& chunk, Metadata& metadata, Bytes& profile) {
    std::string_view rest = text_of(chunk.content);
    const auto key = cut(rest);
    if (key && chunk.name == "zTXt" && !rest.empty() && rest[0] != 0) {
        refuse_damaged("an unknown compression in zTXt");
    }
    const bool is_xmp = key == "XML:com.adobe.xmp"sv;
    if (!key || (!is_xmp && key != "Raw profile type exif"sv)) {
        return;
    }
    Bytes value;
    if (chunk.name == "iTXt") {
        if (!is_xmp || rest.size() < 2) {
            return;
        }
        const bool is_packed = rest[0] != 0;
        const bool is_zlib = rest[1] == 0;
        rest.remove_prefix(2);
        if (!cut(rest) || !cut(rest) || (is_packed && !is_zlib)) {  // language, translated key
            return;
        }
        value = is_packed ? unpacked(rest) : bytes_of(rest);
    } else if (chunk.name == "zTXt") {
        value = rest.empty() ? Bytes() : unpacked(rest.substr(1));
    } else {
        value = bytes_of(rest);
    }
    if (is_xmp) {
        metadata.xmp = std::move(value);
    } else {
        profile = raw_profile(text_of(value));
    }
}

class Parts {
  public:
    void take_header(ByteView content) {
        if (content.size < 13) {
            refuse_damaged("a header of less than 13 bytes");
        }
        if (content.data[11] != 0) {
            refuse_damaged("an unknown filter");
        }
        parts.width = number_at(content.data);
        parts.height = number_at(content.data + 4);
        parts.bits = content.data[8];
        parts.colour = content.data[9];
        parts.interlaced = content.data[12] != 0;
    }

    void take(const Chunk& chunk) {
        const auto& name = chunk.name;
        if (name == "IHDR") {
            take_header(chunk.content);
        } else if (name == "tRNS") {
            take_transparency(chunk.content);
        } else if (name == "eXIf") {
            parts.metadata.exif = {Bytes(chunk.content.data, chunk.content.data + chunk.content.size)};
        } else if (name == "tEXt" || name == "zTXt" || name == "iTXt") {
            take_text(chunk, parts.metadata, profile);
        }
    }

    PngParts parts;
    Bytes profile;

  private:
    void take_transparency(ByteView content) {
        const std::size_t least = parts.colour == 2 ? 6 : parts.colour == 0 ? 2 : 0;
        if (content.size < least) {
            refuse_damaged("a truncated tRNS chunk");
        }
        parts.transparency = content;
    }
};

}  // namespace

PngParts take_apart(ByteView data) {
    Parts result;
    std::size_t place = signature_size;
    std::optional<Chunk> chunk;
    for (;; place += chunk->size) {
        chunk = chunk_at(data, place, false);
        if (!chunk || !has_name(*chunk)) {
            refuse_damaged("a PNG whose header is damaged");
        }
        if (chunk->name == "IDAT") {
            break;
        }
        chunk = chunk_at(data, place, true);
        if (!chunk->is_whole || chunk->name == "IEND") {
            refuse_truncated();
        }
        if (!chunk->is_sound) {
            refuse_damaged("a wrong checksum in " + std::string(chunk->name));
        }
        if (chunk->name == "PLTE") {
            result.parts.palette = chunk->content;
        }
        result.take(*chunk);
    }
    for (; chunk && chunk->name == "IDAT"; chunk = chunk_at(data, place, false)) {
        result.parts.pixels.push_back(chunk->content);
        place += chunk->size;
    }
    for (; chunk && has_name(*chunk) && chunk->name != "IEND"; chunk = chunk_at(data, place, false)) {
        if (!chunk->is_whole) {
            refuse_truncated();
        }
        if (chunk->name != "IHDR") {
            result.take(*chunk);
        }
        place += chunk->size;
    }
    if (result.parts.metadata.exif.empty() && !result.profile.empty()) {
        result.parts.metadata.exif.push_back(std::move(result.profile));
    }
    return std::move(result.parts);
}

std::optional<Bytes> without_metadata(ByteView data) {
    Bytes mended(data.data, data.data + std::min(signature_size, data.size));
    bool has_pixels = false;
    bool has_more = false;
    std::size_t place = signature_size;
    while (const auto chunk = chunk_at(data, place, true)) {
        place += chunk->size;
        const bool is_critical = (static_cast<std::uint8_t>(chunk->name[0]) & 0x20) == 0;
        const bool is_exif = chunk->name == "eXIf";
        if ((!is_critical && chunk->name != "tRNS" && !is_exif) || (is_exif && !chunk->is_sound)) {
            has_more = true;
            continue;
        }
        has_pixels |= chunk->name == "IDAT";
        mended.insert(mended.end(), chunk->start, chunk->start + chunk->size);
        if (chunk->name == "IEND") {
            return has_pixels && has_more ? std::optional(std::move(mended)) : std::nullopt;
        }
    }
    mended.insert(mended.end(), end_chunk.begin(), end_chunk.end());
    return has_pixels && has_more ? std::optional(std::move(mended)) : std::nullopt;
}

}  // namespace itae::images
