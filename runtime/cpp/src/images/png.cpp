#include "images/png.hpp"

#include <png.h>

#include <algorithm>
#include <array>
#include <csetjmp>
#include <cstring>

#include "images/blend.hpp"
#include "images/png_chunks.hpp"

namespace itae::images {
namespace {

constexpr std::size_t block = 1 << 16;  // of compressed data, that zlib is given at a time: Pillow's number
using Rgb = std::array<std::uint8_t, 3>;

void append_number(Bytes& bytes, std::size_t number) {
    for (int shift = 24; shift >= 0; shift -= 8) {
        bytes.push_back(static_cast<std::uint8_t>(number >> shift));
    }
}

/// Begin a chunk; its checksum isn't looked at.
void append_head(Bytes& bytes, std::size_t length, const char* name) {
    append_number(bytes, length);
    bytes.insert(bytes.end(), name, name + 4);
}

/// The rows of a PNG by libpng, from a file of what its pixels need alone.
class PngReader {
  public:
    explicit PngReader(const PngParts& parts) : parts_(parts) {
        png_ = png_create_read_struct(
            PNG_LIBPNG_VER_STRING, this,
            [](png_structp png, png_const_charp message) {
                auto& self = *static_cast<PngReader*>(png_get_error_ptr(png));
                const std::size_t size = std::min(std::strlen(message), self.message_.size() - 1);
                std::memcpy(self.message_.data(), message, size);
                self.message_[size] = 0;
                std::longjmp(self.escape_, 1);
            },
            [](png_structp, png_const_charp) {});
        info_ = png_ == nullptr ? nullptr : png_create_info_struct(png_);
        if (info_ == nullptr) {
            png_destroy_read_struct(&png_, nullptr, nullptr);
            refuse_damaged("not enough memory");
        }
        try {
            start();
        } catch (...) {
            png_destroy_read_struct(&png_, &info_, nullptr);
            throw;
        }
    }
    ~PngReader() { png_destroy_read_struct(&png_, &info_, nullptr); }
    PngReader(const PngReader&) = delete;
    PngReader& operator=(const PngReader&) = delete;

    /// Give each row, from the top, to `use`: a byte a value, except for grey of 16 bits.
    template <typename Use>
    void rows(const Use& use) {
        const std::size_t stride = stride_;
        Bytes pixels(stride * (parts_.interlaced ? parts_.height : 1));
        for (int pass = 0; pass < passes_; ++pass) {
            for (std::size_t y = 0; y < parts_.height && unread_rows_ > 0; ++y) {
                std::uint8_t* row = pixels.data() + (parts_.interlaced ? y * stride : 0);
                guarded([&] { png_read_row(png_, row, nullptr); });
                if (!parts_.interlaced) {
                    use(y, row);
                }
            }
        }
        for (std::size_t y = 0; parts_.interlaced && y < parts_.height; ++y) {
            use(y, pixels.data() + y * stride);
        }
    }

  private:
    /// Call functions of libpng, which must hold nothing that needs a destructor; its errors become a Refusal.
    template <typename Call>
    void guarded(const Call& call) {
        if (setjmp(escape_) == 0) {  // NOLINT(cert-err52-cpp): libpng has no other way out
            call();
            return;
        }
        if (unread_rows_ == 0) {
            return;  // the end of the file is damaged, behind its pixels
        }
        if (std::strcmp(message_.data(), "Not enough image data") == 0) {
            refuse_truncated();
        }
        refuse_damaged(message_.data());
    }

    void start() {
        write_file();
        unread_rows_ = parts_.height;
        if (parts_.interlaced) {
            unread_rows_ = 0;
            for (unsigned pass = 0; pass < PNG_INTERLACE_ADAM7_PASSES; ++pass) {
                unread_rows_ += PNG_PASS_COLS(parts_.width, pass) > 0 ? PNG_PASS_ROWS(parts_.height, pass) : 0;
            }
        }
        guarded([&] {
            png_set_read_fn(png_, this, [](png_structp png, png_bytep out, std::size_t size) {
                if (!static_cast<PngReader*>(png_get_io_ptr(png))->take(out, size)) {
                    png_error(png, "Not enough image data");
                }
            });
            png_set_user_limits(png_, PNG_UINT_31_MAX, PNG_UINT_31_MAX);  // the size was looked at
            png_set_crc_action(png_, PNG_CRC_QUIET_USE, PNG_CRC_QUIET_USE);
            png_set_option(png_, PNG_MAXIMUM_INFLATE_WINDOW, PNG_OPTION_ON);
            png_set_check_for_invalid_index(png_, 0);
            png_set_compression_buffer_size(png_, block);
            png_read_info(png_, info_);
            if (parts_.colour == PNG_COLOR_TYPE_GRAY) {
                png_set_expand_gray_1_2_4_to_8(png_);
            } else {
                png_set_packing(png_);
                png_set_strip_16(png_);
            }
            passes_ = png_set_interlace_handling(png_);
            png_set_read_user_transform_fn(png_, [](png_structp png, png_row_infop, png_bytep) {
                --static_cast<PngReader*>(png_get_io_ptr(png))->unread_rows_;
            });
            png_read_update_info(png_, info_);
            stride_ = png_get_rowbytes(png_, info_);
        });
    }

    void write_file() {
        head_.assign({0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'});
        append_head(head_, 13, "IHDR");
        append_number(head_, parts_.width);
        append_number(head_, parts_.height);
        const int rest[] = {parts_.bits, parts_.colour, 0, 0, parts_.interlaced ? 1 : 0};
        std::copy(std::begin(rest), std::end(rest), std::back_inserter(head_));
        append_number(head_, 0);
        if (parts_.colour == PNG_COLOR_TYPE_PALETTE) {  // libpng wants one; the colours are looked up later
            const std::size_t size = std::size_t{3} << parts_.bits;
            append_head(head_, size, "PLTE");
            head_.resize(head_.size() + size + 4);
        }
    }

    /// The next bytes of the file: the head, a chunk for each piece of pixels, the end.
    bool take(std::uint8_t* out, std::size_t size) {
        while (size > 0) {
            if (now_.size == 0 && !next_piece()) {
                return false;
            }
            const std::size_t count = std::min(size, now_.size);
            if (count > 0) {
                std::memcpy(out, now_.data, count);
            }
            now_ = {now_.data + count, now_.size - count};
            out += count;
            size -= count;
        }
        return true;
    }

    bool next_piece() {
        const std::size_t step = step_++;
        if (step == 0) {
            now_ = head_;
            return true;
        }
        const std::size_t piece = (step - 1) / 2;
        if (piece > parts_.pixels.size()) {
            return false;
        }
        if (step % 2 == 0 && piece < parts_.pixels.size()) {
            now_ = parts_.pixels[piece];
            return true;
        }
        head_.clear();  // between two pieces: a checksum, and the next head
        if (piece > 0) {
            append_number(head_, 0);
        }
        if (piece < parts_.pixels.size()) {
            append_head(head_, parts_.pixels[piece].size, "IDAT");
        } else {
            append_head(head_, 0, "IEND");
            append_number(head_, 0);
            step_ = 2 * parts_.pixels.size() + 3;
        }
        now_ = head_;
        return true;
    }

    const PngParts& parts_;
    png_structp png_ = nullptr;
    png_infop info_ = nullptr;
    std::jmp_buf escape_{};
    std::array<char, 128> message_{};
    Bytes head_;
    ByteView now_;
    std::size_t step_ = 0;
    std::size_t stride_ = 0;
    std::size_t unread_rows_ = 0;  ///< of all passes
    int passes_ = 1;
};

/// The number of a transparent colour's channel, as Pillow compares it with the pixels' 8 bits.
std::uint8_t low_byte(ByteView transparency, std::size_t channel) { return transparency.data[2 * channel + 1]; }

void grey_rows(PngReader& reader, const PngParts& parts, Bytes& rgb) {
    std::array<std::uint8_t, 256> shown{};
    for (std::size_t value = 0; value < shown.size(); ++value) {
        shown[value] = static_cast<std::uint8_t>(value);
    }
    if (parts.transparency) {
        const ByteView number = *parts.transparency;
        shown[parts.bits > 1 ? low_byte(number, 0) : (number.data[0] | number.data[1]) != 0 ? 255 : 0] = 255;
    }
    reader.rows([&](std::size_t y, const std::uint8_t* row) {
        std::uint8_t* out = &rgb[3 * y * parts.width];
        for (std::size_t x = 0; x < parts.width; ++x, out += 3) {
            out[0] = out[1] = out[2] = shown[row[x]];
        }
    });
}

void grey16_rows(PngReader& reader, const PngParts& parts, Bytes& rgb) {
    reader.rows([&](std::size_t y, const std::uint8_t* row) {
        std::uint8_t* out = &rgb[3 * y * parts.width];
        for (std::size_t x = 0; x < parts.width; ++x, out += 3) {
            const std::uint32_t value = std::uint32_t{row[2 * x]} << 8 | row[2 * x + 1];
            out[0] = out[1] = out[2] = static_cast<std::uint8_t>((value * 255 + 32767) / 65535);
        }
    });
}

void rgb_rows(PngReader& reader, const PngParts& parts, Bytes& rgb) {
    reader.rows([&](std::size_t y, const std::uint8_t* row) {
        std::uint8_t* out = &rgb[3 * y * parts.width];
        std::memcpy(out, row, 3 * std::size_t{parts.width});
        if (!parts.transparency) {
            return;
        }
        const ByteView colour = *parts.transparency;
        for (std::size_t x = 0; x < parts.width; ++x, out += 3) {
            if (out[0] == low_byte(colour, 0) && out[1] == low_byte(colour, 1) && out[2] == low_byte(colour, 2)) {
                out[0] = out[1] = out[2] = 255;
            }
        }
    });
}

void alpha_rows(PngReader& reader, const PngParts& parts, Bytes& rgb) {
    const std::size_t colours = parts.colour == PNG_COLOR_TYPE_GRAY_ALPHA ? 1 : 3;
    reader.rows([&](std::size_t y, const std::uint8_t* row) {
        std::uint8_t* out = &rgb[3 * y * parts.width];
        for (std::size_t x = 0; x < parts.width; ++x, out += 3, row += colours + 1) {
            const std::uint8_t alpha = row[colours];
            out[0] = over_white(row[0], alpha);
            out[1] = over_white(row[colours / 2], alpha);
            out[2] = over_white(row[colours - 1], alpha);
        }
    });
}

/// Alpha of each number of a palette.
std::array<std::uint8_t, 256> alphas(const PngParts& parts) {
    std::array<std::uint8_t, 256> result{};
    result.fill(255);
    if (!parts.transparency) {
        return result;
    }
    const ByteView given = *parts.transparency;
    if (given.size > result.size()) {
        throw Refusal("can't be converted from P to RGB");
    }
    if (given.size > 0) {
        std::memcpy(result.data(), given.data, given.size);
    }
    return result;
}

void palette_rows(PngReader& reader, const PngParts& parts, Bytes& rgb) {
    std::array<Rgb, 256> shown{};  // black where the palette ends
    const auto alpha = alphas(parts);
    for (std::size_t number = 0; number < shown.size(); ++number) {
        for (std::size_t channel = 0; channel < 3; ++channel) {
            const std::size_t place = 3 * number + channel;
            const bool is_given = number < parts.palette.size / 3;
            shown[number][channel] = over_white(is_given ? parts.palette.data[place] : 0U, alpha[number]);
        }
    }
    reader.rows([&](std::size_t y, const std::uint8_t* row) {
        std::uint8_t* out = &rgb[3 * y * parts.width];
        for (std::size_t x = 0; x < parts.width; ++x, out += 3) {
            std::memcpy(out, shown[row[x]].data(), 3);
        }
    });
}

bool is_kind(int bits, int colour) {
    switch (colour) {
        case PNG_COLOR_TYPE_GRAY:
            return bits == 1 || bits == 2 || bits == 4 || bits == 8 || bits == 16;
        case PNG_COLOR_TYPE_PALETTE:
            return bits == 1 || bits == 2 || bits == 4 || bits == 8;
        case PNG_COLOR_TYPE_RGB:
        case PNG_COLOR_TYPE_GRAY_ALPHA:
        case PNG_COLOR_TYPE_RGB_ALPHA:
            return bits == 8 || bits == 16;
        default:
            return false;
    }
}

Decoded decode_strictly(ByteView data) {
    const PngParts parts = take_apart(data);
    if (!is_kind(parts.bits, parts.colour) || parts.width == 0 || parts.height == 0) {
        refuse_damaged("a PNG of no known kind");
    }
    check_size(parts.height, parts.width);
    if (parts.colour == PNG_COLOR_TYPE_PALETTE && parts.palette.size / 3 > 256) {
        refuse_damaged("a palette of more than 256 colours");
    }
    Decoded decoded;
    decoded.image.height = parts.height;
    decoded.image.width = parts.width;
    PngReader reader(parts);
    Bytes& rgb = decoded.image.rgb;
    rgb.resize(3 * std::size_t{parts.height} * parts.width);
    if (parts.colour == PNG_COLOR_TYPE_PALETTE) {
        palette_rows(reader, parts, rgb);
    } else if (parts.colour == PNG_COLOR_TYPE_RGB) {
        rgb_rows(reader, parts, rgb);
    } else if (parts.colour != PNG_COLOR_TYPE_GRAY) {
        alpha_rows(reader, parts, rgb);
    } else if (parts.bits == 16) {
        grey16_rows(reader, parts, rgb);
    } else {
        grey_rows(reader, parts, rgb);
    }
    decoded.orientation = orientation(parts.metadata);
    return decoded;
}

}  // namespace

Decoded decode_png(ByteView data) {
    try {
        return decode_strictly(data);
    } catch (const TooLarge&) {
        throw;
    } catch (const Refusal&) {
        const auto bare = without_metadata(data);
        if (!bare) {
            throw;
        }
        return decode_strictly(*bare);
    }
}

}  // namespace itae::images
