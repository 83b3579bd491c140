#include "itae/error.hpp"

#include <array>
#include <cstdint>
#include <cstdio>
#include <utility>

namespace itae {
namespace {

using Range = std::pair<std::uint32_t, std::uint32_t>;

/// Unicode's categories Cc and Cf: controls, and formats, some of which turn the direction of the text.
constexpr std::array<Range, 24> steering{
    {{0x00, 0x1F},       {0x7F, 0x9F},       {0xAD, 0xAD},       {0x600, 0x605},     {0x61C, 0x61C},
     {0x6DD, 0x6DD},     {0x70F, 0x70F},     {0x890, 0x891},     {0x8E2, 0x8E2},     {0x180E, 0x180E},
     {0x200B, 0x200B},   {0x200E, 0x200F},   {0x202A, 0x202E},   {0x2060, 0x2064},   {0x2066, 0x206F},
     {0xFEFF, 0xFEFF},   {0xFFF9, 0xFFFB},   {0x110BD, 0x110BD}, {0x110CD, 0x110CD}, {0x13430, 0x1343F},
     {0x1BCA0, 0x1BCA3}, {0x1D173, 0x1D17A}, {0xE0001, 0xE0001}, {0xE0020, 0xE007F}}};

constexpr std::array<Range, 10> spaces{{{0x09, 0x0D},
                                        {0x1C, 0x20},
                                        {0x85, 0x85},
                                        {0xA0, 0xA0},
                                        {0x1680, 0x1680},
                                        {0x2000, 0x200A},
                                        {0x2028, 0x2029},
                                        {0x202F, 0x202F},
                                        {0x205F, 0x205F},
                                        {0x3000, 0x3000}}};

template <std::size_t Count>
bool is_in(const std::array<Range, Count>& ranges, std::uint32_t code) {
    for (const auto& [first, last] : ranges) {
        if (first <= code && code <= last) return true;
    }
    return false;
}

struct Character {
    std::uint32_t code;
    std::size_t bytes;  ///< 0 where the text is not UTF-8 there
};

Character character_at(const std::string& text, std::size_t at) {
    const auto byte = [&](std::size_t index) { return static_cast<std::uint8_t>(text[index]); };
    const std::uint8_t first = byte(at);
    if (first < 0x80) return {first, 1};
    const std::size_t bytes = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
    if (first < 0xC2 || first > 0xF4 || at + bytes > text.size()) return {first, 0};
    std::uint32_t code = first & (0x7Fu >> bytes);
    for (std::size_t index = at + 1; index < at + bytes; ++index) {
        if ((byte(index) & 0xC0) != 0x80) return {first, 0};
        code = code << 6 | (byte(index) & 0x3Fu);
    }
    constexpr std::array<std::uint32_t, 5> smallest{0, 0, 0x80, 0x800, 0x10000};
    if (code < smallest[bytes] || code > 0x10FFFF || (0xD800 <= code && code <= 0xDFFF)) return {first, 0};
    return {code, bytes};
}

std::string escaped(std::uint32_t code) {
    std::array<char, 12> text{};
    const char* form = code < 0x100 ? "\\x%02x" : code < 0x10000 ? "\\u%04x" : "\\U%08x";
    std::snprintf(text.data(), text.size(), form, code);
    return text.data();
}

}  // namespace

std::string plain(const std::string& text) {
    std::string line;
    bool space = false;
    for (std::size_t at = 0; at < text.size();) {
        const auto [code, bytes] = character_at(text, at);
        if (bytes != 0 && is_in(spaces, code)) {
            space = !line.empty();
        } else {
            if (space) line += ' ';
            space = false;
            if (bytes == 0) {
                line += escaped(0xDC00 + code);  // as Python shows a byte of a file's name that is not UTF-8
            } else if (is_in(steering, code)) {
                line += escaped(code);
            } else {
                line.append(text, at, bytes);
            }
        }
        at += bytes == 0 ? 1 : bytes;
    }
    return line;
}

Error::Error(ErrorKind kind, const std::string& message) : std::runtime_error(plain(message)), kind_(kind) {}

}  // namespace itae
