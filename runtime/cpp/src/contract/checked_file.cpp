#include "contract/checked_file.hpp"

#include <algorithm>
#include <filesystem>

#include "itae/error.hpp"

namespace itae {
namespace {

constexpr std::uint64_t piece_bytes = 1 << 20;

[[noreturn]] void refuse(const Manifest& manifest, const std::string& path, std::uint64_t size,
                         const FileRecord& record) {
    const std::string what = size != record.bytes
                                 ? "has " + std::to_string(size) + " bytes, not the " + std::to_string(record.bytes)
                                 : "has not the SHA-256";
    const std::string name = std::filesystem::path(manifest.manifest_path).filename().string();
    throw Error(ErrorKind::model, path + " " + what + " that " + name +
                                      " gives: it was swapped, altered or only partly written; export it again");
}

[[noreturn]] void refuse(const Manifest& manifest, const std::string& path, const CantRead& error) {
    throw Error(ErrorKind::model, "can't read " + path + ", which the manifest of " + manifest.model_path +
                                      " names: " + error.reason() + "; copy it along under that name");
}

/// Opens a file of the size that its record gives.
OpenFile opened(const Manifest& manifest, const std::string& path, const FileRecord& record) {
    try {
        OpenFile file(path);
        if (file.size() != record.bytes) refuse(manifest, path, file.size(), record);
        return file;
    } catch (const CantRead& error) {
        refuse(manifest, path, error);
    }
}

}  // namespace

Bytes read_checked(const Manifest& manifest, const std::string& path, const FileRecord& record) {
    OpenFile file = opened(manifest, path, record);
    try {
        Bytes content = file.read_all();
        if (content.size() == record.bytes && sha256(content) == record.sha256) return content;
        refuse(manifest, path, content.size(), record);
    } catch (const CantRead& error) {
        refuse(manifest, path, error);
    }
}

CheckedFile::CheckedFile(const Manifest& manifest, const std::string& path, const FileRecord& record)
    : manifest_(manifest),
      path_(path),
      record_(record),
      file_(opened(manifest, path, record)),
      piece_(static_cast<std::size_t>(std::min(record.bytes, piece_bytes))) {
    try {
        Sha256 hash;
        std::uint64_t size = 0;
        while (const std::size_t got = file_.read(piece_.data(), piece_.size())) {
            size += got;
            if (size > record.bytes) break;  // it grows
            hash.add({piece_.data(), got});
            digits_.push_back(hash.digits());
        }
        if (size != record.bytes || hash.digits() != record.sha256) refuse(manifest, path, size, record);
        file_.rewind();
    } catch (const CantRead& error) {
        refuse(manifest, path, error);
    }
}

ByteView CheckedFile::next() {
    if (number_ == digits_.size()) return {};
    try {
        const std::size_t got = file_.read(piece_.data(), piece_.size());
        again_.add({piece_.data(), got});
        if (again_.digits() != digits_[number_]) refuse(manifest_, path_, record_.bytes, record_);
        ++number_;
        return {piece_.data(), got};
    } catch (const CantRead& error) {
        refuse(manifest_, path_, error);
    }
}

}  // namespace itae
