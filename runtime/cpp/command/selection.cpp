#include "selection.hpp"

#include <array>
#include <map>
#include <set>
#include <sstream>
#include <string_view>

#include "images/formats.hpp"
#include "names.hpp"

namespace itae::command {
namespace {

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

std::optional<std::string> kind_by_content(ByteView start) {
    if (!images::picture_format(start).empty()) return std::nullopt;
    if (start.size == 0) return "empty";
    std::string_view kind = images::other_format(start);
    for (const std::string_view article : {"a ", "an "})
        if (kind.substr(0, article.size()) == article) kind.remove_prefix(article.size());
    return std::string(kind.empty() ? "unknown format" : kind);
}

}  // namespace itae::command
