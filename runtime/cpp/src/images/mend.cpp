#include "images/mend.hpp"

#include <algorithm>
#include <bitset>
#include <cstring>
#include <map>

namespace itae::images {
namespace {

constexpr std::uint8_t start_of_image = 0xD8;
constexpr std::uint8_t end_of_image = 0xD9;
constexpr std::uint8_t start_of_scan = 0xDA;
/// Number of zeros at the end of a JPEG that are taken for padding: what a file holds before it is written in full.
constexpr std::size_t padding = 16;

bool is_restart(std::uint8_t marker) { return marker >= 0xD0 && marker <= 0xD7; }

bool is_frame(std::uint8_t marker) {
    return marker >= 0xC0 && marker < 0xD0 && marker != 0xC4 && marker != 0xC8 && marker != 0xCC;
}

/// Place behind the next marker from `place` on, and the marker; restarts are none.
std::optional<std::pair<std::size_t, std::uint8_t>> next_marker(ByteView data, std::size_t place) {
    while (place + 1 < data.size) {
        const void* found = std::memchr(data.data + place, 0xFF, data.size - place - 1);
        if (found == nullptr) {
            break;
        }
        place = static_cast<std::size_t>(static_cast<const std::uint8_t*>(found) - data.data) + 1;
        while (place < data.size && data.data[place] == 0xFF) {
            ++place;
        }
        if (place < data.size && data.data[place] != 0 && !is_restart(data.data[place])) {
            return std::pair(place + 1, data.data[place]);
        }
    }
    return std::nullopt;
}

/// The content of the segment whose length stands at `place`, as far as the file holds it.
ByteView segment_at(ByteView data, std::size_t place) {
    std::size_t length = 0;
    for (std::size_t index = place; index < std::min(place + 2, data.size); ++index) {
        length = length << 8 | data.data[index];
    }
    const std::size_t first = std::min(place + 2, data.size);
    const std::size_t last = std::min(place + length, data.size);
    return {data.data + first, last > first ? last - first : 0};
}

/// Offset of the coded data of the last scan, if the scans hold all bits and no end marker comes after them.
std::optional<std::size_t> last_scan(ByteView data) {
    std::map<std::uint8_t, std::bitset<64>> missing;  // of each component, coefficients whose last bit did not come yet
    std::optional<std::size_t> scan;
    if (data.size < 2 || data.data[0] != 0xFF || data.data[1] != start_of_image) {
        return std::nullopt;
    }
    std::size_t place = 2;
    while (const auto found = next_marker(data, place)) {
        const std::uint8_t marker = found->second;
        place = found->first;
        const ByteView segment = segment_at(data, place);
        if (marker == end_of_image) {
            return std::nullopt;
        }
        if (is_frame(marker) && segment.size >= 6) {
            missing.clear();
            for (std::size_t n = 0; n < segment.data[5] && 6 + 3 * n < segment.size; ++n) {
                missing[segment.data[6 + 3 * n]].set();
            }
        }
        if (marker == start_of_scan) {
            if (segment.size == 0 || segment.size < 2 * std::size_t{segment.data[0]} + 4) {
                return std::nullopt;
            }
            const std::uint8_t* last = segment.data + segment.size - 3;  // first and last coefficient, bits
            if ((last[2] & 0x0F) == 0) {
                for (std::size_t n = 0; n < segment.data[0]; ++n) {
                    const auto component = missing.find(segment.data[1 + 2 * n]);
                    for (std::size_t bit = last[0]; component != missing.end() && bit < 64 && bit <= last[1]; ++bit) {
                        component->second.reset(bit);
                    }
                }
            }
            scan = place + 2 + segment.size;
        }
        place += 2 + segment.size;
    }
    const bool is_whole =
        std::all_of(missing.begin(), missing.end(), [](const auto& component) { return component.second.none(); });
    return !missing.empty() && is_whole ? scan : std::nullopt;
}

/// Coded data without a marker, also behind each of the next restart markers, and the end marker.
Bytes ending(bool ones, unsigned first_restart) {
    Bytes filler;
    for (int twice = 0; twice < 2; ++twice) {
        for (int value = 1; value < 255; ++value) {
            filler.push_back(static_cast<std::uint8_t>(ones ? 255 - value : value));
        }
    }
    Bytes result = filler;
    for (unsigned number = 0; number < 8; ++number) {
        result.push_back(0xFF);
        result.push_back(static_cast<std::uint8_t>(0xD0 | ((first_restart + number) & 7)));
        result.insert(result.end(), filler.begin(), filler.end());
    }
    result.push_back(0xFF);
    result.push_back(end_of_image);
    return result;
}

}  // namespace

std::optional<Endings> with_end_marker(ByteView data) {
    std::size_t size = data.size;
    while (size > 0 && data.data[size - 1] == 0) {
        --size;
    }
    if (data.size - size < padding) {
        size = data.size;
    }
    while (size > 0 && data.data[size - 1] == 0xFF) {  // half of a marker
        --size;
    }
    data.size = size;
    const auto scan = last_scan(data);
    if (!scan) {
        return std::nullopt;
    }
    unsigned first = 0;
    for (std::size_t place = *scan; place + 1 < data.size; ++place) {
        if (data.data[place] == 0xFF && is_restart(data.data[place + 1])) {
            first = data.data[place + 1] + 1U;
        }
    }
    return Endings{data, ending(false, first), ending(true, first)};
}

}  // namespace itae::images
