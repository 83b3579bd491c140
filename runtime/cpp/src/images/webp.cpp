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

}  // namespace

Decoded decode_webp(ByteView data) {
    WebPBitstreamFeatures features{};
    if (WebPGetFeatures(data.data, data.size, &features) != VP8_STATUS_OK) {
        refuse_damaged("no header of a WebP");
    }
    check_size(features.height, features.width);  // the decoder takes memory for its canvas when it is made
    const WebPData content{data.data, data.size};
    const std::unique_ptr<WebPAnimDecoder, DeleteDecoder> decoder(WebPAnimDecoderNew(&content, nullptr));
    if (decoder == nullptr) {
        refuse_damaged("no WebP that is whole");
    }
    WebPAnimInfo canvas{};
    std::uint8_t* pixels = nullptr;
    int timestamp = 0;
    WebPAnimDecoderGetInfo(decoder.get(), &canvas);
    check_size(canvas.canvas_height, canvas.canvas_width);
    if (WebPAnimDecoderGetNext(decoder.get(), &pixels, &timestamp) == 0) {
        refuse_damaged("the first frame of a WebP is damaged");
    }
    Decoded decoded;
    decoded.orientation = orientation_of(WebPAnimDecoderGetDemuxer(decoder.get()));
    decoded.image.height = canvas.canvas_height;
    decoded.image.width = canvas.canvas_width;
    const std::size_t count = std::size_t{canvas.canvas_height} * canvas.canvas_width;
    decoded.image.rgb.resize(3 * count);
    std::uint8_t* rgb = decoded.image.rgb.data();
    for (std::size_t index = 0; index < count; ++index, pixels += 4, rgb += 3) {
        const std::uint32_t alpha = features.has_alpha != 0 ? pixels[3] : 255;
        rgb[0] = over_white(pixels[0], alpha);
        rgb[1] = over_white(pixels[1], alpha);
        rgb[2] = over_white(pixels[2], alpha);
    }
    return decoded;
}

}  // namespace itae::images
