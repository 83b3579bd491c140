#include "backends/onnx_references.hpp"

#include <vector>

#include "itae/error.hpp"

namespace itae {
namespace {

/// onnx.proto, as far as it leads to tensors.
enum class Kind { model, training, function, graph, node, attribute, sparse, tensor, none };

constexpr std::uint64_t external_data = 13;  // fields of a tensor whose values lie in another file
constexpr std::uint64_t data_location = 14;

struct Message {
    Kind kind;
    ByteView bytes;
};

/// The kind of message that a field of another holds; none if it leads to no tensor.
Kind inner(Kind kind, std::uint64_t field) {
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

[[noreturn]] void refuse() { throw Error(ErrorKind::model, "it is no ONNX file, or was cut short"); }

/// A number of 7 bits a byte, least first; `at` moves behind it.
std::uint64_t varint(ByteView message, std::size_t& at) {
    std::uint64_t number = 0;
    for (unsigned shift = 0; at < message.size && shift < 64; shift += 7) {
        const std::uint64_t byte = message.data[at++];
        if (shift == 63 && byte > 1) break;  // more than 64 bits
        number |= (byte & 127) << shift;
        if (byte < 128) return number;
    }
    refuse();
}

}  // namespace

bool refers_to_other_files(ByteView content) {
    std::vector<Message> waiting{{Kind::model, content}};
    while (!waiting.empty()) {
        const auto [kind, message] = waiting.back();
        waiting.pop_back();
        for (std::size_t at = 0; at < message.size;) {
            const std::uint64_t key = varint(message, at);
            const std::uint64_t field = key >> 3;
            std::uint64_t size = 0;
            switch (key & 7) {
                case 0:  // a number
                    if (varint(message, at) != 0 && kind == Kind::tensor && field == data_location) return true;
                    continue;
                case 1:
                    size = 8;
                    break;
                case 2:
                    size = varint(message, at);
                    break;
                case 5:
                    size = 4;
                    break;
                default:
                    refuse();
            }
            if (size > message.size - at) refuse();
            if (kind == Kind::tensor && field == external_data) return true;
            if (const Kind found = inner(kind, field); found != Kind::none)
                waiting.push_back({found, ByteView(message.data + at, static_cast<std::size_t>(size))});
            at += static_cast<std::size_t>(size);
        }
    }
    return false;
}

}  // namespace itae
