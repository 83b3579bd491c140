#pragma once

#include <string>
#include <vector>

#include "itae/bytes.hpp"
#include "itae/image.hpp"

namespace itae::images {

/// What a file says about its picture, as its format holds it.
struct Metadata {
    std::vector<Bytes> exif;  ///< EXIF in pieces; none if the file has none
    Bytes xmp;                ///< looked at where EXIF doesn't hold the orientation
};

/// EXIF's orientation, 1 if it is unknown or can't be read: what Pillow's `getexif` finds.
int orientation(const Metadata& metadata);

/// Turn a picture as EXIF's `orientation` says; a value other than 2 to 8 leaves it alone.
Image upright(Image image, int orientation);

}  // namespace itae::images
