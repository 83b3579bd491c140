#include "contract/checked_file.hpp"

#include <filesystem>

#include "contract/open_file.hpp"
#include "contract/sha256.hpp"
#include "itae/error.hpp"

namespace itae {
namespace {

[[noreturn]] void refuse(const Manifest& manifest, const std::string& path, std::uint64_t size,
                         const FileRecord& record) {
    const std::string what = size != record.bytes
                                 ? "has " + std::to_string(size) + " bytes, not the " + std::to_string(record.bytes)
                                 : "has not the SHA-256";
    const std::string name = std::filesystem::path(manifest.manifest_path).filename().string();
    throw Error(ErrorKind::model, path + " " + what + " that " + name +
                                      " gives: it was swapped, altered or only partly written; export it again");
}

/// Opens a file of the size that its record gives, and calls `use` with it.
template <typename Use>
auto with_file(const Manifest& manifest, const std::string& path, const FileRecord& record, const Use& use) {
    try {
        OpenFile file(path);
        if (file.size() != record.bytes) refuse(manifest, path, file.size(), record);
        return use(file);
    } catch (const CantRead& error) {
        throw Error(ErrorKind::model, "can't read " + path + ", which the manifest of " + manifest.model_path +
                                          " names: " + error.reason() + "; copy it along under that name");
    }
}

}  // namespace

Bytes read_checked(const Manifest& manifest, const std::string& path, const FileRecord& record) {
    Bytes content = with_file(manifest, path, record, [](OpenFile& file) { return file.read_all(); });
    if (content.size() != record.bytes || sha256(content) != record.sha256) {
        refuse(manifest, path, content.size(), record);
    }
    return content;
}

void check_file(const Manifest& manifest, const std::string& path, const FileRecord& record) {
    with_file(manifest, path, record, [&](OpenFile& file) {
        Sha256 hash;
        Bytes piece(1 << 20);
        std::uint64_t size = 0;
        while (const std::size_t got = file.read(piece.data(), piece.size())) {
            size += got;
            hash.add({piece.data(), got});
        }
        if (size != record.bytes || hash.digits() != record.sha256) refuse(manifest, path, size, record);
    });
}

}  // namespace itae
