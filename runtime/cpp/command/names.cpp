#include "names.hpp"

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <utility>

namespace itae::command {
namespace {

struct Decoded {
    char32_t point;
    std::size_t bytes;  ///< 0: the byte there is not UTF-8
};

/// The code point at a place, as the Unicode standard defines UTF-8: the shortest form, no surrogates.
Decoded decode(const std::string& text, std::size_t at) {
    const auto byte = [&](std::size_t place) {
        return place < text.size() ? static_cast<unsigned char>(text[place]) : static_cast<unsigned char>(0);
    };
    const unsigned char first = byte(at);
    if (first < 0x80) return {first, 1};
    const std::size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
    if (first < 0xc2 || first > 0xf4) return {0, 0};
    char32_t point = first & (0xffU >> (length + 1));
    for (std::size_t number = 1; number < length; ++number) {
        const unsigned char next = byte(at + number);
        if ((next & 0xc0U) != 0x80U) return {0, 0};
        point = point << 6U | (next & 0x3fU);
    }
    const bool is_short = (length == 3 && point < 0x800) || (length == 4 && point < 0x10000);
    if (is_short || (point >= 0xd800 && point < 0xe000) || point > 0x10ffff) return {0, 0};
    return {point, length};
}

}  // namespace

bool is_utf8(const std::string& name) {
    for (std::size_t at = 0; at < name.size();) {
        const std::size_t bytes = decode(name, at).bytes;
        if (bytes == 0) return false;
        at += bytes;
    }
    return true;
}

std::string printable(const std::string& name) {
    constexpr const char* digits = "0123456789abcdef";
    std::string text;
    for (std::size_t at = 0; at < name.size();) {
        const std::size_t bytes = decode(name, at).bytes;
        if (bytes == 0) {
            const auto byte = static_cast<unsigned char>(name[at]);
            text += std::string("\\udc") + digits[byte >> 4U] + digits[byte & 15U];
        } else {
            text.append(name, at, bytes);
        }
        at += std::max<std::size_t>(bytes, 1);
    }
    return text;
}

void sort_names(std::vector<std::string>& names) {
    if (std::all_of(names.begin(), names.end(), is_utf8)) {  // then the order of bytes is that of code points
        std::sort(names.begin(), names.end());
        return;
    }
    std::vector<std::pair<std::u32string, std::string>> keyed;
    for (std::string& name : names) {
        std::u32string points;
        for (std::size_t at = 0; at < name.size();) {
            const Decoded found = decode(name, at);
            points += found.bytes == 0 ? 0xdc00U + static_cast<unsigned char>(name[at]) : found.point;
            at += std::max<std::size_t>(found.bytes, 1);
        }
        keyed.emplace_back(std::move(points), std::move(name));
    }
    std::sort(keyed.begin(), keyed.end());
    for (std::size_t number = 0; number < names.size(); ++number) names[number] = std::move(keyed[number].second);
}

std::string base_name(const std::string& path) {
    const std::size_t slash = path.rfind('/');
    return slash == std::string::npos ? path : path.substr(slash + 1);
}

std::string lower(std::string text) {
    for (char& one : text)
        if (one >= 'A' && one <= 'Z') one = static_cast<char>(one - 'A' + 'a');
    return text;
}

std::string suffix(const std::string& name) {
    const std::string base = base_name(name);
    const std::size_t dot = base.rfind('.');
    if (dot == std::string::npos || base.find_first_not_of('.') > dot) return {};  // dots at its beginning alone
    return lower(base.substr(dot));
}

std::string normalized(const std::string& path) {
    std::size_t slashes = path.find_first_not_of('/');
    if (slashes == std::string::npos) slashes = path.size();
    if (slashes > 2) slashes = 1;
    std::vector<std::string> parts;
    for (std::size_t start = 0; start <= path.size();) {
        const std::size_t end = std::min(path.find('/', start), path.size());
        std::string part = path.substr(start, end - start);
        start = end + 1;
        if (part.empty() || part == ".") continue;
        if (part != ".." || (slashes == 0 && parts.empty()) || (!parts.empty() && parts.back() == ".."))
            parts.push_back(std::move(part));
        else if (!parts.empty())
            parts.pop_back();
    }
    std::string text(slashes, '/');
    for (const std::string& part : parts) text += (&part == &parts.front() ? "" : "/") + part;
    return text.empty() ? "." : text;
}

std::string resolved(const std::string& folder) {
    namespace fs = std::filesystem;
    std::string text = fs::weakly_canonical(fs::absolute(folder.empty() ? fs::path(".") : fs::path(folder))).string();
    while (text.size() > 1 && text.back() == '/') text.pop_back();
    return text;
}

}  // namespace itae::command
