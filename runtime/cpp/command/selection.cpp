#include "selection.hpp"

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <sstream>
#include <string_view>

#include "names.hpp"

namespace itae::command {
namespace {

using std::string_view_literals::operator""sv;

const std::set<std::string>& image_suffixes() {
    static const std::set<std::string> all{".jpg", ".jpeg", ".jpe", ".jfif", ".png",  ".webp", ".bmp",
                                           ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif", ".hif"};
    return all;
}

const std::set<std::string>& system_names() {
    static const std::set<std::string> all{"thumbs.db",
                                           "ehthumbs.db",
                                           "ehthumbs_vista.db",
                                           "desktop.ini",
                                           "picasa.ini",
                                           "zbthumbnail.info",
                                           "icon\r",
                                           "__macosx",
                                           "__pycache__",
                                           "lost+found",
                                           "$recycle.bin",
                                           "recycler",
                                           "system volume information",
                                           "@eadir",
                                           "@sharebin",
                                           "#recycle",
                                           "@recycle",
                                           "#snapshot",
                                           "~snapshot",
                                           "@recently-snapshot",
                                           "temporary items",
                                           "network trash folder"};
    return all;
}

const std::map<std::string, std::string>& other_suffixes() {
    static const std::map<std::string, std::string> all = [] {
        const std::array<std::array<const char*, 2>, 7> kinds{{
            {"text",
             "txt md rst csv tsv json jsonl xml xmp aae yaml yml toml html htm css js log py ipynb cls url srt"},
            {"video", "mp4 m4v mov qt avi mkv webm 3gp mpg mpeg mts m2ts wmv flv"},
            {"sound", "mp3 wav m4a flac ogg aac opus"},
            {"raw file of a camera", "dng cr2 cr3 crw nef nrw arw sr2 srf orf rw2 rwl pef raf srw 3fr iiq x3f erf mrw"},
            {"archive", "zip tar gz tgz bz2 xz zst 7z rar"},
            {"data",
             "npy npz parquet arrow feather pkl pickle pt pth ckpt safetensors onnx h5 hdf5 mat db sqlite tfrecord "
             "mdb"},
            {"document", "pdf doc docx xls xlsx ppt pptx odt ods odp"},
        }};
        std::map<std::string, std::string> by_suffix;
        for (const auto& [kind, suffixes] : kinds) {
            std::istringstream words(suffixes);
            for (std::string word; words >> word;) by_suffix["." + word] = kind;
        }
        return by_suffix;
    }();
    return all;
}

struct Magic {
    std::size_t place;
    std::string_view bytes;
    const char* name;
};

bool is_at(std::string_view start, std::size_t place, std::string_view bytes) {
    return start.size() >= place + bytes.size() && start.compare(place, bytes.size(), bytes) == 0;
}

bool is_bmp(std::string_view start) {
    if (!is_at(start, 0, "BM") || start.size() < 18) return false;
    std::uint32_t header = 0;
    for (std::size_t byte = 0; byte < 4; ++byte)
        header |= static_cast<std::uint32_t>(static_cast<unsigned char>(start[14 + byte])) << (8 * byte);
    const std::set<std::uint32_t> known{12, 16, 40, 52, 56, 64, 108, 124};
    return known.count(header) > 0;
}

/// Whether an ISO file has a brand of AVIF or HEIC as its first one.
bool has_brand_of_picture(std::string_view start) {
    if (!is_at(start, 4, "ftyp") || start.size() < 12) return false;
    const std::set<std::string_view> brands{"avif", "avis", "heic", "heix", "heim", "heis",
                                            "hevc", "hevx", "hevm", "hevs", "mif1", "msf1"};
    return brands.count(start.substr(8, 4)) > 0;
}

bool is_picture(std::string_view start) {
    static constexpr std::array<Magic, 8> magics{{
        {0, "\xff\xd8\xff"sv, "JPEG"},
        {0, "\x89PNG\r\n\x1a\n"sv, "PNG"},
        {0, "GIF87a"sv, "GIF"},
        {0, "GIF89a"sv, "GIF"},
        {0, "II*\0"sv, "TIFF"},
        {0, "MM\0*"sv, "TIFF"},
        {0, "II+\0"sv, "TIFF"},
        {0, "MM\0+"sv, "TIFF"},
    }};
    if (is_bmp(start) || (is_at(start, 0, "RIFF") && is_at(start, 8, "WEBP"))) return true;
    const auto begins_so = [&](const Magic& magic) { return is_at(start, magic.place, magic.bytes); };
    // A raw file of Canon's has the form of a TIFF.
    if (!is_at(start, 8, "CR\x02"sv) && std::any_of(magics.begin(), magics.end(), begins_so)) return true;
    return has_brand_of_picture(start);
}

}  // namespace

bool is_system(const std::string& name) {
    return (!name.empty() && name.front() == '.' && name != "." && name != "..") ||
           system_names().count(lower(name)) > 0;
}

bool is_image(const std::string& name) { return image_suffixes().count(suffix(name)) > 0; }

std::optional<std::string> kind_by_suffix(const std::string& name) {
    const auto found = other_suffixes().find(suffix(name));
    return found == other_suffixes().end() ? std::nullopt : std::optional<std::string>(found->second);
}

std::optional<std::string> kind_by_content(ByteView bytes) {
    static constexpr std::array<Magic, 22> others{{
        {4, "ftypcrx"sv, "camera's raw file"},
        {8, "CR\x02"sv, "camera's raw file"},
        {0, "IIU\0"sv, "camera's raw file"},
        {0, "IIRO"sv, "camera's raw file"},
        {0, "FUJIFILMCCD-RAW"sv, "camera's raw file"},
        {4, "ftyp"sv, "video"},
        {4, "moov"sv, "video"},
        {0, "\x1a\x45\xdf\xa3"sv, "video"},
        {8, "AVI "sv, "video"},
        {0, "\xff\x0a"sv, "JPEG XL"},
        {0, "\0\0\0\x0cJXL "sv, "JPEG XL"},
        {0, "\0\0\0\x0cjP  "sv, "JPEG 2000"},
        {0, "\xff\x4f\xff\x51"sv, "JPEG 2000"},
        {128, "DICM"sv, "DICOM"},
        {0, "v/1\x01"sv, "OpenEXR"},
        {0, "\0\0\1\0"sv, "icon"},
        {0, "%PDF"sv, "PDF"},
        {0, "8BPS"sv, "Photoshop's PSD"},
        {0, "PK\x03\x04"sv, "zip file"},
        {0, "\x1f\x8b"sv, "gzip file"},
        {0, "\0\x05\x16\x07"sv, "macOS's data about a file (AppleDouble)"},
        {0, "version https://git-lfs"sv, "pointer of Git LFS (fetch the file with git lfs pull)"},
    }};
    const std::string_view start(reinterpret_cast<const char*>(bytes.data), std::min(bytes.size, head_bytes));
    if (is_picture(start)) return std::nullopt;
    if (start.empty()) return "empty";
    for (const Magic& magic : others)
        if (is_at(start, magic.place, magic.bytes)) return magic.name;
    // A text, behind a byte order mark and blanks.
    const std::size_t first = start.find_first_not_of("\xef\xbb\xbf\r\n\t ");
    if (first != std::string_view::npos && start[first] == '<') {
        const std::string text = lower(std::string(start));
        const std::array<std::array<const char*, 2>, 4> tags{
            {{"<svg", "SVG"}, {"<html", "HTML page"}, {"<!doctype html", "HTML page"}, {"<?xml", "XML"}}};
        for (const auto& [tag, kind] : tags)
            if (text.find(tag) != std::string::npos) return kind;
    }
    return "unknown format";
}

}  // namespace itae::command
