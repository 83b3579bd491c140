#pragma once

#include <cstdint>
#include <vector>

#include "itae/bytes.hpp"

namespace itae {

/// Looks through an ONNX file, which is given in pieces, for tensors whose values lie in another file.
///
/// ONNX Runtime looks for such a file beside the model or in the current folder, whoever put it there.
class ReferenceFinder {
  public:
    /// @param size of the whole file, in bytes.
    explicit ReferenceFinder(std::uint64_t size);

    /// Look through the next bytes of the file.
    ///
    /// @returns whether a tensor of what was given so far has its values in another file.
    /// @throws Error model: the bytes are no ONNX file; the message does not name it.
    bool add(ByteView piece);

  private:
    /// The messages of onnx.proto, as far as they lead to tensors.
    enum class Kind { model, training, function, graph, node, attribute, sparse, tensor, none };
    /// What a number says that is being read.
    enum class Role { key, value, size };
    struct Message {
        Kind kind;
        std::uint64_t end;  ///< place of the first byte behind it
    };

    static Kind inner(Kind kind, std::uint64_t field);
    void take(std::uint64_t number);
    void leave_ended();

    const std::uint64_t size_;
    std::uint64_t at_ = 0;       // place of the next byte
    std::uint64_t skipped_ = 0;  // bytes from there on that say nothing
    std::vector<Message> open_;  // from the model to the innermost message
    Role role_ = Role::key;
    std::uint64_t field_ = 0;   // whose value or size is next
    std::uint64_t number_ = 0;  // the bits read of a number
    unsigned shift_ = 0;        // how many they are
    bool found_ = false;
};

}  // namespace itae
