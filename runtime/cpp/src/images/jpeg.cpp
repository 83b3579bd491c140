#include "images/jpeg.hpp"

#include <algorithm>
#include <array>
#include <csetjmp>
#include <cstdio>
#include <cstring>

extern "C" {
#include <jerror.h>
#include <jpeglib.h>
}

#include "images/mend.hpp"
#include "images/orientation.hpp"

namespace itae::images {
namespace {

constexpr std::size_t rows_at_a_time = 16;
constexpr int app1 = JPEG_APP0 + 1;

/// a * b / 255, rounded, as Pillow computes it.
constexpr int by_255(int a, int b) {
    const int product = a * b + 128;
    return ((product >> 8) + product) >> 8;
}

/// Pillow's conversion of pixels whose ink is inverted, as Adobe writes it: it takes all files for such.
void rgb_of_cmyk(const std::uint8_t* cmyk, std::size_t pixels, std::uint8_t* rgb) {
    for (std::size_t index = 0; index < pixels; ++index, cmyk += 4, rgb += 3) {
        const int white = cmyk[3];
        for (int ink = 0; ink < 3; ++ink) {
            rgb[ink] = static_cast<std::uint8_t>(white - by_255(255 - cmyk[ink], white));
        }
    }
}

/// Rows of RGB of a JPEG in memory, in one or two pieces.
class JpegReader {
  public:
    JpegReader(ByteView data, ByteView more) : more_(more) {
        info_.err = jpeg_std_error(&errors_);
        errors_.error_exit = [](j_common_ptr info) { std::longjmp(self(info).escape_, 1); };
        errors_.output_message = [](j_common_ptr) {};  // of warnings: Pillow ignores them too
        info_.client_data = this;
        source_.next_input_byte = data.data;
        source_.bytes_in_buffer = data.size;
        source_.init_source = [](j_decompress_ptr) {};
        source_.fill_input_buffer = [](j_decompress_ptr info) { return self(info).next_piece(); };
        source_.skip_input_data = [](j_decompress_ptr info, long count) { self(info).skip(count); };
        source_.resync_to_restart = jpeg_resync_to_restart;
        source_.term_source = [](j_decompress_ptr) {};
        try {
            guarded([&] { jpeg_create_decompress(&info_); });
            info_.src = &source_;
            start();
        } catch (...) {
            jpeg_destroy_decompress(&info_);
            throw;
        }
    }
    ~JpegReader() { jpeg_destroy_decompress(&info_); }
    JpegReader(const JpegReader&) = delete;
    JpegReader& operator=(const JpegReader&) = delete;

    std::size_t height() const { return info_.image_height; }
    std::size_t width() const { return info_.image_width; }
    int orientation() const { return orientation_; }

    /// Read up to `count` rows of RGB, at least one, into `rgb`; returns how many. After the last one, the file's end.
    std::size_t read(std::uint8_t* rgb, std::size_t count) {
        std::array<JSAMPROW, rows_at_a_time> rows{};
        count = std::min(count, rows.size());
        const bool is_cmyk = info_.out_color_space == JCS_CMYK;
        const std::size_t stride = width() * (is_cmyk ? 4 : 3);
        if (is_cmyk) {
            cmyk_.resize(count * stride);
        }
        for (std::size_t row = 0; row < count; ++row) {
            rows[row] = (is_cmyk ? cmyk_.data() : rgb) + row * stride;
        }
        JDIMENSION done = 0;
        guarded([&] { done = jpeg_read_scanlines(&info_, rows.data(), static_cast<JDIMENSION>(count)); });
        if (done == 0) {
            refuse_truncated();
        }
        if (is_cmyk) {
            rgb_of_cmyk(cmyk_.data(), done * width(), rgb);
        }
        if (info_.output_scanline == info_.output_height) {
            guarded([&] { jpeg_finish_decompress(&info_); });  // which may find no end marker; the pixels are whole
        }
        return done;
    }

  private:
    template <typename Info>
    static JpegReader& self(Info info) {
        return *static_cast<JpegReader*>(info->client_data);
    }

    /// Call functions of libjpeg, which must hold nothing that needs a destructor; its errors become a Refusal.
    template <typename Call>
    void guarded(const Call& call) {
        if (setjmp(escape_) == 0) {  // NOLINT(cert-err52-cpp): libjpeg has no other way out
            call();
            return;
        }
        std::array<char, JMSG_LENGTH_MAX> message{};
        errors_.format_message(reinterpret_cast<j_common_ptr>(&info_), message.data());
        refuse_damaged(message.data());
    }

    boolean next_piece() {
        if (more_.size == 0) {
            return FALSE;  // it waits for more, which never comes: the file is truncated
        }
        source_.next_input_byte = more_.data;
        source_.bytes_in_buffer = more_.size;
        more_.size = 0;
        return TRUE;
    }

    void skip(long count) {
        std::size_t left = count > 0 ? static_cast<std::size_t>(count) : 0;
        while (left > source_.bytes_in_buffer) {
            left -= source_.bytes_in_buffer;
            source_.bytes_in_buffer = 0;
            if (next_piece() == FALSE) {
                return;
            }
        }
        source_.next_input_byte += left;
        source_.bytes_in_buffer -= left;
    }

    void start() {
        int status = 0;
        guarded([&] {
            jpeg_save_markers(&info_, app1, 0xFFFF);
            do {  // tables may come first, as a datastream of their own
                status = jpeg_read_header(&info_, FALSE);
            } while (status == JPEG_HEADER_TABLES_ONLY);
        });
        if (status != JPEG_HEADER_OK) {
            refuse_truncated();
        }
        if (info_.num_components != 1 && info_.num_components != 3 && info_.num_components != 4) {
            refuse_damaged("a JPEG of " + std::to_string(info_.num_components) + " components");
        }
        check_size(info_.image_height, info_.image_width);
        orientation_ = images::orientation(metadata());
        info_.out_color_space = info_.num_components == 4 ? JCS_CMYK : JCS_RGB;
        boolean started = FALSE;
        guarded([&] { started = jpeg_start_decompress(&info_); });
        if (started == FALSE) {
            refuse_truncated();
        }
    }

    Metadata metadata() const {
        static constexpr char exif[] = "Exif\0";  // and a second NUL
        static constexpr char xmp[] = "http://ns.adobe.com/xap/1.0/";
        Metadata found;
        for (auto marker = info_.marker_list; marker != nullptr; marker = marker->next) {
            const Bytes content(marker->data, marker->data + marker->data_length);
            if (content.size() >= sizeof exif && std::memcmp(content.data(), exif, sizeof exif) == 0) {
                const std::ptrdiff_t first = found.exif.empty() ? 0 : sizeof exif;
                found.exif.emplace_back(content.begin() + first, content.end());
            } else if (content.size() >= sizeof xmp && std::memcmp(content.data(), xmp, sizeof xmp) == 0) {
                found.xmp.assign(content.begin() + sizeof xmp, content.end());
            }
        }
        return found;
    }

    jpeg_decompress_struct info_{};
    jpeg_error_mgr errors_{};
    jpeg_source_mgr source_{};
    std::jmp_buf escape_{};
    ByteView more_;
    int orientation_ = 1;
    Bytes cmyk_;
};

Decoded decode_pieces(ByteView data, ByteView more) {
    JpegReader reader(data, more);
    Decoded decoded;
    decoded.orientation = reader.orientation();
    decoded.image.height = static_cast<std::int64_t>(reader.height());
    decoded.image.width = static_cast<std::int64_t>(reader.width());
    const std::size_t stride = 3 * reader.width();
    decoded.image.rgb.resize(reader.height() * stride);
    for (std::size_t y = 0; y < reader.height();) {
        y += reader.read(&decoded.image.rgb[y * stride], reader.height() - y);
    }
    return decoded;
}

/// Whether a JPEG in two pieces decodes to these pixels.
bool gives(const Bytes& rgb, ByteView data, ByteView more) {
    JpegReader reader(data, more);
    const std::size_t stride = 3 * reader.width();
    if (rgb.size() != reader.height() * stride) {
        return false;
    }
    Bytes rows(rows_at_a_time * stride);
    for (std::size_t y = 0; y < reader.height();) {
        const std::size_t count = reader.read(rows.data(), std::min(rows_at_a_time, reader.height() - y));
        if (std::memcmp(rows.data(), &rgb[y * stride], count * stride) != 0) {
            return false;
        }
        y += count;
    }
    return true;
}

}  // namespace

Decoded decode_jpeg(ByteView data) {
    try {
        return decode_pieces(data, {});
    } catch (const TooLarge&) {
        throw;
    } catch (const Refusal&) {
        const auto endings = with_end_marker(data);
        if (!endings) {
            throw;
        }
        Decoded decoded;
        bool is_whole = false;
        try {
            decoded = decode_pieces(endings->data, endings->zeros);
            is_whole = gives(decoded.image.rgb, endings->data, endings->ones);
        } catch (const Refusal&) {
            is_whole = false;
        }
        if (!is_whole) {
            throw;
        }
        return decoded;
    }
}

}  // namespace itae::images
