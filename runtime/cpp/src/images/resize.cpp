#include "images/resize.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace itae::images {
namespace {

constexpr int precision = 32 - 8 - 2;  // bits of a coefficient behind the point
constexpr std::int32_t half = 1 << (precision - 1);
constexpr std::size_t channels = 3;

double bicubic(double x) {
    constexpr double a = -0.5;
    x = std::abs(x);
    if (x < 1.0) {
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    }
    if (x < 2.0) {
        return (((x - 5) * x + 8) * x - 4) * a;
    }
    return 0.0;
}

double bilinear(double x) {
    x = std::abs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

/// The original pixels that a resized one is made of, and their weights.
struct Window {
    std::size_t first = 0;
    std::size_t count = 0;
    std::size_t weights = 0;  ///< place of the first weight
};

/// Windows of resized pixels `from` to `from + count` of one direction.
struct Filter {
    std::vector<Window> windows;
    std::vector<std::int32_t> weights;  ///< in fixed point; an even number for each window, the last one 0 if need be

    std::size_t first() const { return windows.front().first; }
    /// One behind the last original pixel that is needed.
    std::size_t end() const { return windows.back().first + windows.back().count; }
};

/// Pillow's `precompute_coeffs` and `normalize_coeffs_8bpc`, in the same order of operations.
Filter make_filter(Kernel kernel, std::int64_t original, std::int64_t resized, std::int64_t from, std::int64_t count) {
    const double radius = kernel == Kernel::bicubic ? 2.0 : 1.0;
    const auto weight_at = kernel == Kernel::bicubic ? bicubic : bilinear;
    const double scale = static_cast<double>(static_cast<float>(original)) / static_cast<double>(resized);
    const double filter_scale = std::max(scale, 1.0);
    const double support = radius * filter_scale;
    const double step = 1.0 / filter_scale;
    Filter filter;
    std::vector<double> exact;
    for (std::int64_t number = from; number < from + count; ++number) {
        const double center = (static_cast<double>(number) + 0.5) * scale;
        // NOLINTNEXTLINE(bugprone-incorrect-roundings): as Pillow rounds; the sum may be negative, and is cut off to 0
        const auto first = std::max<std::int64_t>(0, static_cast<std::int64_t>(center - support + 0.5));
        // NOLINTNEXTLINE(bugprone-incorrect-roundings)
        const auto end = std::min(original, static_cast<std::int64_t>(center + support + 0.5));
        exact.clear();
        double sum = 0;
        for (std::int64_t place = first; place < end; ++place) {
            exact.push_back(weight_at((static_cast<double>(place) - center + 0.5) * step));
            sum += exact.back();
        }
        filter.windows.push_back({static_cast<std::size_t>(first), exact.size(), filter.weights.size()});
        for (double weight : exact) {
            weight = sum == 0.0 ? weight : weight / sum;
            filter.weights.push_back(static_cast<std::int32_t>(weight * (1 << precision) + (weight < 0 ? -0.5 : 0.5)));
        }
        if (exact.size() % 2 == 1) {
            filter.weights.push_back(0);
        }
    }
    return filter;
}

std::uint8_t clipped(std::int32_t sum) {
    return static_cast<std::uint8_t>(std::min(std::max(sum >> precision, 0), 255));
}

/// Resize one row: `row` holds all of its original pixels.
void resize_row(const std::uint8_t* row, const Filter& filter, std::uint8_t* out) {
    for (const Window& window : filter.windows) {
        std::array<std::int32_t, channels> sums{half, half, half};
        const std::uint8_t* pixel = row + channels * window.first;
        const std::int32_t* weight = &filter.weights[window.weights];
        for (std::size_t number = 0; number < window.count; ++number, pixel += channels) {
            for (std::size_t channel = 0; channel < channels; ++channel) {
                sums[channel] += pixel[channel] * weight[number];
            }
        }
        for (std::size_t channel = 0; channel < channels; ++channel) {
            *out++ = clipped(sums[channel]);
        }
    }
}

/// A row of the result of rows that lie `stride` bytes apart: bytes `begin` to `end` of it.
void resize_column(const std::uint8_t* rows, std::size_t stride, const Window& window, const std::int32_t* weights,
                   std::size_t begin, std::size_t end, std::uint8_t* out) {
    constexpr std::size_t width = 64;  // bytes whose sums are held at a time
    for (std::size_t start = begin; start < end; start += width) {
        const std::size_t count = std::min(width, end - start);
        std::array<std::int32_t, width> sums{};
        for (std::size_t number = 0; number < window.count; ++number) {
            const std::uint8_t* row = rows + number * stride + start;
            for (std::size_t x = 0; x < count; ++x) {
                sums[x] += row[x] * weights[number];
            }
        }
        for (std::size_t x = 0; x < count; ++x) {
            out[start + x] = clipped(sums[x] + half);
        }
    }
}

#if defined(__x86_64__)

// With AVX2, two original pixels are multiplied at a time, as values of 16 bits. A weight w of 23 bits is split into
// high * 2^15 + low, and both sums are put together at the end. Sums wrap at 2^32, and so does their sum, which fits:
// the result is exact.
constexpr int low_bits = 15;
constexpr std::int32_t low_mask = (1 << low_bits) - 1;

/// Two weights, split: pairs of 16 bits, as _mm256_madd_epi16 takes them.
struct SplitPair {
    std::int32_t low;
    std::int32_t high;
};

std::vector<SplitPair> split(const std::vector<std::int32_t>& weights) {
    std::vector<SplitPair> pairs;
    pairs.reserve(weights.size() / 2);
    const auto both = [](std::int32_t first, std::int32_t second) {
        return static_cast<std::int32_t>((static_cast<std::uint32_t>(first) & 0xFFFF) |
                                         static_cast<std::uint32_t>(second) << 16);
    };
    for (std::size_t number = 0; number < weights.size(); number += 2) {
        const std::int32_t one = weights[number];
        const std::int32_t two = weights[number + 1];
        pairs.push_back({both(one & low_mask, two & low_mask), both(one >> low_bits, two >> low_bits)});
    }
    return pairs;
}

/// Sums of 22 bits behind the point as bytes: 8 of one lane come from `low`, 8 of the other from `high`.
__attribute__((target("avx2"))) inline __m256i total(__m256i low, __m256i high) {
    const __m256i sum =
        _mm256_add_epi32(_mm256_add_epi32(low, _mm256_slli_epi32(high, low_bits)), _mm256_set1_epi32(half));
    return _mm256_srai_epi32(sum, precision);
}

/// Resize two rows at a time, which are read up to 5 bytes behind their ends.
__attribute__((target("avx2"))) void resize_two_rows(const std::uint8_t* one, const std::uint8_t* two,
                                                     const Filter& filter, const std::vector<SplitPair>& weights,
                                                     std::uint8_t* out_one, std::uint8_t* out_two) {
    // R0 R1 G0 G1 B0 B1 - - of the two pixels R0 G0 B0 R1 G1 B1, each as 16 bits
    const __m256i spread =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
    for (const Window& window : filter.windows) {
        __m256i low = _mm256_setzero_si256();
        __m256i high = _mm256_setzero_si256();
        const SplitPair* pair = &weights[window.weights / 2];
        for (std::size_t number = 0; number < window.count; number += 2, ++pair) {
            const std::size_t place = channels * (window.first + number);
            const __m256i pixels =
                _mm256_shuffle_epi8(_mm256_set_m128i(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(two + place)),
                                                     _mm_loadl_epi64(reinterpret_cast<const __m128i*>(one + place))),
                                    spread);
            low = _mm256_add_epi32(low, _mm256_madd_epi16(pixels, _mm256_set1_epi32(pair->low)));
            high = _mm256_add_epi32(high, _mm256_madd_epi16(pixels, _mm256_set1_epi32(pair->high)));
        }
        const __m256i sums = total(low, high);
        const __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(sums, sums), sums);
        const int first = _mm256_extract_epi32(bytes, 0);
        const int second = _mm256_extract_epi32(bytes, 4);
        std::memcpy(out_one, &first, channels);
        std::memcpy(out_two, &second, channels);
        out_one += channels;
        out_two += channels;
    }
}

/// `resize_column` for 16 bytes at a time, as many as fit; returns where it stopped.
__attribute__((target("avx2"))) std::size_t resize_column_avx2(const std::uint8_t* rows, std::size_t stride,
                                                               const Window& window,
                                                               const std::vector<SplitPair>& weights, std::size_t count,
                                                               std::uint8_t* out) {
    std::size_t x = 0;
    for (; x + 16 <= count; x += 16) {
        __m256i low[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
        __m256i high[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
        const SplitPair* pair = &weights[window.weights / 2];
        const std::uint8_t* row = rows + x;
        for (std::size_t number = 0; number < window.count; number += 2, ++pair, row += 2 * stride) {
            const __m128i one = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row));
            const bool has_second = number + 1 < window.count;
            const __m128i two =
                has_second ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + stride)) : _mm_setzero_si128();
            const __m256i first = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(one, two));
            const __m256i second = _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(one, two));
            const __m256i low_pair = _mm256_set1_epi32(pair->low);
            const __m256i high_pair = _mm256_set1_epi32(pair->high);
            low[0] = _mm256_add_epi32(low[0], _mm256_madd_epi16(first, low_pair));
            high[0] = _mm256_add_epi32(high[0], _mm256_madd_epi16(first, high_pair));
            low[1] = _mm256_add_epi32(low[1], _mm256_madd_epi16(second, low_pair));
            high[1] = _mm256_add_epi32(high[1], _mm256_madd_epi16(second, high_pair));
        }
        // packs works within halves of 128 bits: 0-3 8-11 | 4-7 12-15
        const __m256i words = _mm256_packs_epi32(total(low[0], high[0]), total(low[1], high[1]));
        const __m256i ordered = _mm256_permute4x64_epi64(words, 0xD8);
        const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + x), bytes);
    }
    return x;
}

bool use_avx2(Instructions instructions) {
    static const bool has_avx2 = __builtin_cpu_supports("avx2") != 0;
    return has_avx2 && instructions == Instructions::best;
}

#endif

/// Rows of pixels in memory.
struct Rows {
    const std::uint8_t* data = nullptr;
    std::size_t height = 0;
    std::size_t width = 0;

    std::size_t stride() const { return channels * width; }
};

/// The first pass or the second: rows `first` to `end` become as many rows of the filter's width.
Bytes resize_rows(Rows image, std::size_t first, std::size_t end, const Filter& filter,
                  [[maybe_unused]] Instructions instructions) {
    const std::size_t stride = channels * filter.windows.size();
    Bytes result((end - first) * stride);
    std::size_t y = first;
#if defined(__x86_64__)
    if (use_avx2(instructions)) {
        const std::vector<SplitPair> weights = split(filter.weights);
        Bytes copies(2 * (image.stride() + 8));  // of the last rows, behind which nothing can be read
        const auto row_at = [&](std::size_t row) {
            const std::uint8_t* data = image.data + row * image.stride();
            if ((image.height - row - 1) * image.stride() >= 8) {
                return data;
            }
            std::uint8_t* copy = copies.data() + (row % 2) * (image.stride() + 8);
            std::memcpy(copy, data, image.stride());
            return static_cast<const std::uint8_t*>(copy);
        };
        for (; y + 2 <= end; y += 2) {
            std::uint8_t* out = result.data() + (y - first) * stride;
            resize_two_rows(row_at(y), row_at(y + 1), filter, weights, out, out + stride);
        }
    }
#endif
    for (; y < end; ++y) {
        resize_row(image.data + y * image.stride(), filter, result.data() + (y - first) * stride);
    }
    return result;
}

/// Columns `first` to `end` become as many columns of the filter's height.
Bytes resize_columns(Rows image, std::size_t first, std::size_t end, const Filter& filter,
                     [[maybe_unused]] Instructions instructions) {
    const std::size_t count = channels * (end - first);
    Bytes result(filter.windows.size() * count);
    std::uint8_t* out = result.data();
#if defined(__x86_64__)
    const bool has_pairs = use_avx2(instructions);
    const std::vector<SplitPair> weights = has_pairs ? split(filter.weights) : std::vector<SplitPair>();
#endif
    for (const Window& window : filter.windows) {
        const std::uint8_t* rows = image.data + window.first * image.stride() + channels * first;
        std::size_t done = 0;
#if defined(__x86_64__)
        if (has_pairs) {
            done = resize_column_avx2(rows, image.stride(), window, weights, count, out);
        }
#endif
        resize_column(rows, image.stride(), window, &filter.weights[window.weights], done, count, out);
        out += count;
    }
    return result;
}

Bytes cut_out(const Image& image, std::int64_t top, std::int64_t left, Size part) {
    const std::size_t stride = channels * static_cast<std::size_t>(part.width);
    Bytes result(static_cast<std::size_t>(part.height) * stride);
    for (std::int64_t y = 0; y < part.height; ++y) {
        const auto place = static_cast<std::size_t>((top + y) * image.width + left);
        std::memcpy(&result[static_cast<std::size_t>(y) * stride], &image.rgb[channels * place], stride);
    }
    return result;
}

}  // namespace

std::vector<std::uint8_t> resized_part(const Image& image, Size size, std::int64_t top, std::int64_t left, Size part,
                                       Kernel kernel, Instructions instructions) {
    const bool rows_change = image.width != size.width;
    const bool columns_change = image.height != size.height;
    if (!rows_change && !columns_change) {
        return cut_out(image, top, left, part);
    }
    const Rows all{image.rgb.data(), static_cast<std::size_t>(image.height), static_cast<std::size_t>(image.width)};
    const auto first_row = static_cast<std::size_t>(top);
    const auto first_column = static_cast<std::size_t>(left);
    const auto height = static_cast<std::size_t>(part.height);
    const auto width = static_cast<std::size_t>(part.width);
    if (!columns_change) {
        const Filter filter = make_filter(kernel, image.width, size.width, left, part.width);
        return resize_rows(all, first_row, first_row + height, filter, instructions);
    }
    if (!rows_change) {
        const Filter filter = make_filter(kernel, image.height, size.height, top, part.height);
        return resize_columns(all, first_column, first_column + width, filter, instructions);
    }
    Filter for_rows = make_filter(kernel, image.width, size.width, left, part.width);
    Filter for_columns = make_filter(kernel, image.height, size.height, top, part.height);
    const std::int64_t shrinks = image.height - size.height;
    if (shrinks > 0 && shrinks > 2 * (image.width - size.width)) {
        const std::size_t first = for_rows.first();
        const std::size_t end = for_rows.end();
        const Bytes columns = resize_columns(all, first, end, for_columns, instructions);
        for (Window& window : for_rows.windows) {
            window.first -= first;
        }
        return resize_rows({columns.data(), height, end - first}, 0, height, for_rows, instructions);
    }
    const std::size_t first = for_columns.first();
    const std::size_t end = for_columns.end();
    const Bytes rows = resize_rows(all, first, end, for_rows, instructions);
    for (Window& window : for_columns.windows) {
        window.first -= first;
    }
    return resize_columns({rows.data(), end - first, width}, 0, width, for_columns, instructions);
}

}  // namespace itae::images
