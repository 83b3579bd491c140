#include "backends/onnx_references.hpp"

#include <algorithm>

#include "itae/error.hpp"

namespace itae {
namespace {

constexpr std::uint64_t external_data = 13;  // fields of a tensor whose values lie in another file
constexpr std::uint64_t data_location = 14;
constexpr std::size_t max_depth = 100;  // messages within messages; protobuf has the same limit

[[noreturn]] void refuse() { throw Error(ErrorKind::model, "it is no ONNX file, or was cut short"); }

}  // namespace

ReferenceFinder::ReferenceFinder(std::uint64_t size) : size_(size), open_{{Kind::model, size}} {}

/// The kind of message that a field of another holds; none if it leads to no tensor.
ReferenceFinder::Kind ReferenceFinder::inner(Kind kind, std::uint64_t field) {
    switch (kind) {
        case Kind::model:
            return field == 7 ? Kind::graph : field == 20 ? Kind::training : field == 25 ? Kind::function : Kind::none;
        case Kind::training:
            return field == 1 || field == 2 ? Kind::graph : Kind::none;
        case Kind::function:
            return field == 7 ? Kind::node : field == 11 ? Kind::attribute : Kind::none;
        case Kind::graph:
            return field == 1 ? Kind::node : field == 5 ? Kind::tensor : field == 15 ? Kind::sparse : Kind::none;
        case Kind::node:
            return field == 5 ? Kind::attribute : Kind::none;
        case Kind::attribute:
            return field == 5 || field == 10    ? Kind::tensor
                   : field == 6 || field == 11  ? Kind::graph
                   : field == 22 || field == 23 ? Kind::sparse
                                                : Kind::none;
        case Kind::sparse:
            return field == 1 ? Kind::tensor : Kind::none;
        default:
            return Kind::none;
    }
}

bool ReferenceFinder::add(ByteView piece) {
    for (std::size_t at = 0; at < piece.size;) {
        if (skipped_ > 0) {
            const std::uint64_t count = std::min<std::uint64_t>(skipped_, piece.size - at);
            skipped_ -= count;
            at_ += count;
            at += static_cast<std::size_t>(count);
            leave_ended();
            continue;
        }
        if (at_ == open_.back().end) refuse();  // more bytes than the file has
        const std::uint64_t byte = piece.data[at++];
        ++at_;
        if (shift_ == 63 && byte > 1) refuse();  // more than 64 bits
        number_ |= (byte & 127) << shift_;
        shift_ += 7;
        if (byte < 128) {
            take(number_);
        } else if (at_ == open_.back().end) {
            refuse();  // in the midst of a number
        }
    }
    if (at_ == size_ && (role_ != Role::key || shift_ != 0)) refuse();
    return found_;
}

/// A number is whole: the key of a field, or what follows it.
void ReferenceFinder::take(std::uint64_t number) {
    const auto [kind, end] = open_.back();
    const std::uint64_t left = end - at_;
    number_ = 0;
    shift_ = 0;
    if (role_ == Role::key) {
        field_ = number >> 3;
        switch (number & 7) {
            case 0:
                role_ = Role::value;
                break;
            case 1:
                skipped_ = 8;
                break;
            case 2:
                role_ = Role::size;
                break;
            case 5:
                skipped_ = 4;
                break;
            default:
                refuse();
        }
        if (skipped_ > left) refuse();
        return;
    }
    if (role_ == Role::value) {
        found_ = found_ || (number != 0 && kind == Kind::tensor && field_ == data_location);
    } else {
        if (number > left) refuse();
        found_ = found_ || (kind == Kind::tensor && field_ == external_data);
        if (const Kind within = inner(kind, field_); within == Kind::none) {
            skipped_ = number;
        } else {
            if (open_.size() == max_depth) refuse();
            open_.push_back({within, at_ + number});
        }
    }
    role_ = Role::key;
    leave_ended();
}

/// Close the messages that end here; the model is never closed.
void ReferenceFinder::leave_ended() {
    while (skipped_ == 0 && open_.size() > 1 && at_ == open_.back().end) open_.pop_back();
}

}  // namespace itae
