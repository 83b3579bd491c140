#include "output.hpp"

#include <sys/stat.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "itae/error.hpp"
#include "names.hpp"

namespace itae::command {
namespace {

constexpr std::size_t longest_line = 1U << 20U;

/// A JSON string, as Python writes it without escaping what is not ASCII. What some readers take for the end of a line
/// and JSON does not escape is escaped.
std::string quoted(const std::string& text) {
    std::string json = nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    for (const auto& [character, escape] : {std::pair{"\xc2\x85", "\\u0085"}, std::pair{"\xe2\x80\xa8", "\\u2028"},
                                            std::pair{"\xe2\x80\xa9", "\\u2029"}}) {
        const std::string searched = character;
        for (std::size_t at = 0; (at = json.find(searched, at)) != std::string::npos;)
            json.replace(at, searched.size(), escape);
    }
    return json;
}

/// Whether a file begins as the lines of a pair do; none if it does not exist.
std::optional<bool> is_ours(const std::string& lines) {
    struct stat found {};
    if (::lstat(lines.c_str(), &found) != 0 && errno == ENOENT) return std::nullopt;
    std::ifstream file(lines, std::ios::binary);
    std::string line;
    for (char one = 0; line.size() < longest_line && file.get(one) && one != '\n';) line += one;
    const nlohmann::json fields = nlohmann::json::parse(line, nullptr, false);
    if (!fields.is_object()) return false;
    const auto is_text = [&](const char* name) { return fields.contains(name) && fields[name].is_string(); };
    const bool is_row = fields.contains("row") && fields["row"].is_number_integer() && fields["row"] == 0;
    return is_text("root") && is_text("path") && (is_row || is_text("error"));
}

void check_place(const std::string& out, const std::string& lines) {
    for (const std::string& path : {out, lines}) {
        struct stat found {};
        if (::stat(path.c_str(), &found) == 0 && !S_ISREG(found.st_mode))
            throw Error(ErrorKind::io, "can't write " + path + ": it is no file; move it away");
    }
    const std::optional<bool> ours = is_ours(lines);
    struct stat found {};
    if (ours && !*ours) {
        throw Error(ErrorKind::io,
                    lines + " does not begin as the lines of embeddings do: give another name, or move it away");
    }
    if (!ours && ::stat(out.c_str(), &found) == 0) {
        throw Error(ErrorKind::io, out + " is there without " + lines + ": give another name, or move it away");
    }
}

}  // namespace

std::string npy_header(std::int64_t rows, std::int64_t width) {
    constexpr std::size_t largest_digits = 21;  // numpy leaves room for more rows
    const std::string count = std::to_string(rows);
    std::string header =
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + count + ", " + std::to_string(width) + "), }";
    header.append(largest_digits - count.size(), ' ');
    const std::size_t before = 10;  // bytes of the magic number, the version and the header's size
    header.append(64 - (before + header.size() + 1) % 64, ' ');
    header += '\n';
    std::string start("\x93NUMPY\x01\x00", 8);
    start += static_cast<char>(header.size() & 255U);
    start += static_cast<char>(header.size() >> 8U);
    return start + header;
}

std::string line_of(std::int64_t row, const std::string& root, const std::string& path,
                    std::optional<std::int64_t> label) {
    std::string line =
        "{\"row\": " + std::to_string(row) + ", \"root\": " + quoted(root) + ", \"path\": " + quoted(path);
    if (label) line += ", \"label\": " + std::to_string(*label);
    return line + "}\n";
}

std::string line_of(const std::string& root, const std::string& path, const std::string& error) {
    return "{\"root\": " + quoted(root) + ", \"path\": " + quoted(path) + ", \"error\": " + quoted(error) + "}\n";
}

PairWriter::PairWriter(std::string out, std::int64_t width) : out_(std::move(out)), width_(width) {
    const std::filesystem::path path(out_);
    if (path.extension() != ".npy") throw Error(ErrorKind::usage, out_ + ": the file to write must end in .npy");
    lines_path_ = std::filesystem::path(path).replace_extension(".jsonl").string();
    recover(out_);
    check_place(out_, lines_path_);
    work_ = std::make_unique<WorkFolder>(out_);
    numbers_ = opened(base_name(out_));
    lines_ = opened(base_name(lines_path_));
    const std::string header = npy_header(0, width_);  // its place: the number of rows is not known yet
    write(numbers_.get(), header.data(), header.size());
}

PairWriter::~PairWriter() = default;

void PairWriter::add(const Entry& entry, const float* embedding, std::optional<std::int64_t> label) {
    write(numbers_.get(), embedding, static_cast<std::size_t>(width_) * sizeof(float));
    const std::string line = line_of(rows_, entry.root, entry.path, label);
    write(lines_.get(), line.data(), line.size());
    ++rows_;
}

void PairWriter::fail(const Entry& entry, const std::string& error) {
    const std::string line = line_of(entry.root, entry.path, error);
    write(lines_.get(), line.data(), line.size());
}

void PairWriter::publish() {
    const std::string header = npy_header(rows_, width_);
    if (std::fseek(numbers_.get(), 0, SEEK_SET) != 0) cannot_write(out_, errno);
    write(numbers_.get(), header.data(), header.size());
    finish(std::move(numbers_));
    finish(std::move(lines_));
    command::publish(out_, {base_name(out_), base_name(lines_path_)}, work_->path());
}

PairWriter::File PairWriter::opened(const std::string& name) const {
    File file(std::fopen((work_->path() + "/" + name).c_str(), "w+be"));
    if (!file) cannot_write(out_, errno);
    return file;
}

void PairWriter::write(std::FILE* file, const void* data, std::size_t bytes) const {
    if (std::fwrite(data, 1, bytes, file) != bytes) cannot_write(out_, errno);
}

void PairWriter::finish(File file) const {
    if (std::fflush(file.get()) != 0) cannot_write(out_, errno);
    sync_file(::fileno(file.get()), out_);
    if (std::fclose(file.release()) != 0) cannot_write(out_, errno);
}

}  // namespace itae::command
