#include "contract/npz.hpp"

#include <zip.h>

#include <algorithm>
#include <array>
#include <memory>
#include <set>

#include "contract/npy.hpp"
#include "itae/error.hpp"

namespace itae {
namespace {

struct Discard {
    void operator()(zip_t* archive) const noexcept { zip_discard(archive); }
};
struct Close {
    void operator()(zip_file_t* member) const noexcept { zip_fclose(member); }
};
using Archive = std::unique_ptr<zip_t, Discard>;
using Member = std::unique_ptr<zip_file_t, Close>;

std::string words(zip_error_t& error) {
    std::string text = zip_error_strerror(&error);
    zip_error_fini(&error);
    return text;
}

Archive open(ByteView file) {
    zip_error_t error;
    zip_error_init(&error);
    zip_source_t* source = zip_source_buffer_create(file.data, file.size, 0, &error);
    if (source == nullptr) throw NotNpz(words(error));
    Archive archive(zip_open_from_source(source, ZIP_RDONLY, &error));
    if (archive == nullptr) {
        zip_source_free(source);
        throw NotNpz(words(error));
    }
    zip_error_fini(&error);
    return archive;
}

zip_stat_t facts(const Archive& archive, std::uint64_t index) {
    zip_stat_t found;
    zip_stat_init(&found);
    constexpr std::uint64_t wanted = ZIP_STAT_NAME | ZIP_STAT_SIZE | ZIP_STAT_COMP_METHOD | ZIP_STAT_ENCRYPTION_METHOD;
    if (zip_stat_index(archive.get(), index, 0, &found) != 0) throw NotNpz(zip_strerror(archive.get()));
    if ((found.valid & wanted) != wanted) throw NotNpz("a member lacks its name or size");
    return found;
}

/// All bytes of a member; libzip compares their CRC at the end.
Bytes unpacked(const Archive& archive, std::uint64_t index, std::uint64_t size) {
    const Member member(zip_fopen_index(archive.get(), index, 0));
    if (member == nullptr) throw NotNpz(zip_strerror(archive.get()));
    Bytes content(size + 1);  // one more, which must stay empty: else it unpacks to more than it says
    std::uint64_t done = 0;
    while (done < content.size()) {
        const zip_int64_t got = zip_fread(member.get(), content.data() + done, content.size() - done);
        if (got < 0) throw NotNpz(zip_file_strerror(member.get()));
        if (got == 0) break;
        done += static_cast<std::uint64_t>(got);
    }
    if (done != size) throw NotNpz("a member has not the size that the archive gives");
    content.resize(size);
    return content;
}

}  // namespace

std::map<std::string, Array> parse_npz(ByteView file, const std::vector<std::string>& names, std::uint64_t max_bytes) {
    // As numpy: a zip file may have anything before its first member, an npz not.
    constexpr std::array<std::uint8_t, 4> first{'P', 'K', 3, 4}, none{'P', 'K', 5, 6};
    if (file.size < 4 ||
        (!std::equal(first.begin(), first.end(), file.data) && !std::equal(none.begin(), none.end(), file.data))) {
        throw NotNpz("it does not begin as a zip archive");
    }
    const Archive archive = open(file);
    const auto members = static_cast<std::uint64_t>(std::max<zip_int64_t>(0, zip_get_num_entries(archive.get(), 0)));
    std::set<std::string> seen;
    std::map<std::string, std::uint64_t> wanted;
    std::uint64_t total = 0;
    for (std::uint64_t index = 0; index < members; ++index) {
        const zip_stat_t member = facts(archive, index);
        if (__builtin_add_overflow(total, member.size, &total) || total > max_bytes) {
            throw NotNpz("it unpacks to more than " + std::to_string(max_bytes) + " bytes");
        }
        if (!seen.insert(member.name).second) throw NotNpz("it has two members of one name");
        for (const std::string& name : names) {
            if (name + ".npy" == member.name) wanted[name] = index;
        }
    }
    std::map<std::string, Array> arrays;
    for (const auto& [name, index] : wanted) {
        const zip_stat_t member = facts(archive, index);
        if (member.encryption_method != ZIP_EM_NONE) throw NotNpz("a member is encrypted");
        if (member.comp_method != ZIP_CM_STORE && member.comp_method != ZIP_CM_DEFLATE) {
            throw NotNpz("a member is compressed in an unknown way");
        }
        // What the archive gives as sizes is not believed: deflate packs no better than 1 byte for 1032.
        const std::uint64_t most = member.comp_method == ZIP_CM_STORE ? 1 : 1032;
        if (member.size / most > file.size) throw NotNpz("a member is said to be larger than the archive can hold");
        const Bytes content = unpacked(archive, index, member.size);
        arrays.emplace(name, parse_npy(content));
    }
    return arrays;
}

std::map<std::string, Array> read_npz(ByteView file, const std::vector<std::string>& names, std::uint64_t max_bytes,
                                      const std::string& name) {
    try {
        return parse_npz(file, names, max_bytes);
    } catch (const std::runtime_error& error) {  // NotNpz, NotNpy
        throw Error(ErrorKind::model, name + " is not an npz file of arrays (" + error.what() + ")");
    }
}

}  // namespace itae
