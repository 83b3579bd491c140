#include "images/webp.hpp"

#include <webp/decode.h>
#include <webp/demux.h>

#include <memory>

#include "images/blend.hpp"
#include "images/orientation.hpp"

namespace itae::images {
namespace {

struct DeleteDecoder {
    void operator()(WebPAnimDecoder* decoder) const { WebPAnimDecoderDelete(decoder); }
};

struct DeleteDemuxer {
    void operator()(WebPDemuxer* demuxer) const { WebPDemuxDelete(demuxer); }
};

/// A frame of a file; its bytes are the file's.
struct Frame : WebPIterator {
    Frame(const WebPDemuxer* demuxer, int number) : WebPIterator{} { WebPDemuxGetFrame(demuxer, number, this); }
    ~Frame() { WebPDemuxReleaseIterator(this); }
    Frame(const Frame&) = delete;
    Frame& operator=(const Frame&) = delete;
};

Bytes chunk(const WebPDemuxer* demuxer, const char* name) {
    WebPChunkIterator found{};
    Bytes content;
    if (WebPDemuxGetChunk(demuxer, name, 1, &found) != 0) {
        content.assign(found.chunk.bytes, found.chunk.bytes + found.chunk.size);
    }
    WebPDemuxReleaseChunkIterator(&found);
    return content;
}

int orientation_of(const WebPDemuxer* demuxer) {
    Metadata metadata;
    if (Bytes exif = chunk(demuxer, "EXIF"); !exif.empty()) {
        metadata.exif.push_back(std::move(exif));
    }
    metadata.xmp = chunk(demuxer, "XMP ");
    return orientation(metadata);
}

[[noreturn]] void refuse_cut() { refuse_damaged("no WebP that is whole"); }
[[noreturn]] void refuse_frame() { refuse_damaged("the first frame of a WebP is damaged"); }

Image blank(std::int64_t height, std::int64_t width) {
    check_size(height, width);
    return {height, width, Bytes(static_cast<std::size_t>(3 * height * width))};
}

/// A picture without transparency that does not move, in the colours that `decode_canvas` would give it: it needs no
/// canvas, which costs as much again as half of the decoding.
Decoded decode_still(const WebPData& content) {
    const std::unique_ptr<WebPDemuxer, DeleteDemuxer> demuxer(WebPDemux(&content));
    if (demuxer == nullptr) {
        refuse_cut();
    }
    const Frame frame(demuxer.get(), 1);
    Decoded decoded;
    decoded.image =
        blank(WebPDemuxGetI(demuxer.get(), WEBP_FF_CANVAS_HEIGHT), WebPDemuxGetI(demuxer.get(), WEBP_FF_CANVAS_WIDTH));
    Image& image = decoded.image;
    if (frame.width != image.width || frame.height != image.height ||
        WebPDecodeRGBInto(frame.fragment.bytes, frame.fragment.size, image.rgb.data(), image.rgb.size(),
                          3 * frame.width) == nullptr) {
        refuse_frame();
    }
    decoded.orientation = orientation_of(demuxer.get());
    return decoded;
}

/// The first picture of an animation, or one with transparency, over white.
Decoded decode_canvas(const WebPData& content, bool has_alpha) {
    const std::unique_ptr<WebPAnimDecoder, DeleteDecoder> decoder(WebPAnimDecoderNew(&content, nullptr));
    if (decoder == nullptr) {
        refuse_cut();
    }
    WebPAnimInfo canvas{};
    std::uint8_t* pixels = nullptr;
    int timestamp = 0;
    WebPAnimDecoderGetInfo(decoder.get(), &canvas);
    Decoded decoded;
    decoded.image = blank(canvas.canvas_height, canvas.canvas_width);
    if (WebPAnimDecoderGetNext(decoder.get(), &pixels, &timestamp) == 0) {
        refuse_frame();
    }
    decoded.orientation = orientation_of(WebPAnimDecoderGetDemuxer(decoder.get()));
    Bytes& rgb = decoded.image.rgb;
    for (std::size_t at = 0; at < rgb.size(); at += 3, pixels += 4) {
        const std::uint32_t alpha = has_alpha ? pixels[3] : 255;
        rgb[at] = over_white(pixels[0], alpha);
        rgb[at + 1] = over_white(pixels[1], alpha);
        rgb[at + 2] = over_white(pixels[2], alpha);
    }
    return decoded;
}

}  // namespace

Decoded decode_webp(ByteView data) {
    WebPBitstreamFeatures features{};
    if (WebPGetFeatures(data.data, data.size, &features) != VP8_STATUS_OK) {
        refuse_damaged("no header of a WebP");
    }
    check_size(features.height, features.width);  // the decoder takes memory for its canvas when it is made
    const WebPData content{data.data, data.size};
    const bool has_alpha = features.has_alpha != 0;
    return has_alpha || features.has_animation != 0 ? decode_canvas(content, has_alpha) : decode_still(content);
}

}  // namespace itae::images
