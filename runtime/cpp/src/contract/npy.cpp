#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <string_view>

#include "contract/npy.hpp"
#include "itae/error.hpp"
#include "itae/golden.hpp"

namespace itae {
namespace {

/// The header of an npy file is a literal of Python, `{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }`; no
/// kept library reads it without reading the array too.
class HeaderText {
  public:
    explicit HeaderText(std::string_view text) : text_(text) {}

    bool take(char wanted) {
        skip_spaces();
        if (at_ == text_.size() || text_[at_] != wanted) return false;
        ++at_;
        return true;
    }

    void expect(char wanted) {
        if (!take(wanted)) throw NotNpy(std::string("its header lacks a '") + wanted + "'");
    }

    /// A string in quotes of either kind, without escapes.
    std::string string() {
        skip_spaces();
        const char quote = at_ < text_.size() ? text_[at_] : ' ';
        if (quote != '\'' && quote != '"') throw NotNpy("its header lacks a string");
        const std::size_t end = text_.find(quote, at_ + 1);
        if (end == std::string_view::npos) throw NotNpy("a string of its header has no end");
        std::string found(text_.substr(at_ + 1, end - at_ - 1));
        if (found.find('\\') != std::string::npos) throw NotNpy("a string of its header holds a backslash");
        at_ = end + 1;
        return found;
    }

    bool boolean() {
        skip_spaces();
        for (const std::string_view word : {std::string_view("True"), std::string_view("False")}) {
            if (text_.substr(at_, word.size()) == word) {
                at_ += word.size();
                return word == "True";
            }
        }
        throw NotNpy("its fortran_order is neither True nor False");
    }

    /// A tuple of sizes: `()`, `(3,)`, `(2, 3)`.
    std::vector<std::int64_t> sizes() {
        std::vector<std::int64_t> found;
        expect('(');
        while (!take(')')) {
            found.push_back(size());
            if (take(',')) continue;
            if (found.size() == 1) throw NotNpy("its shape is no tuple");
            expect(')');
            break;
        }
        if (found.size() > max_dimensions) throw NotNpy("it has " + std::to_string(found.size()) + " dimensions");
        return found;
    }

    void expect_end() {
        skip_spaces();
        if (at_ != text_.size()) throw NotNpy("its header goes on behind its end");
    }

  private:
    static constexpr std::size_t max_dimensions = 32;

    void skip_spaces() {
        while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t')) ++at_;
    }

    std::int64_t size() {
        skip_spaces();
        const std::size_t first = at_;
        std::int64_t number = 0;
        for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
            const int digit = text_[at_] - '0';
            if (number > (std::numeric_limits<std::int64_t>::max() - digit) / 10)
                throw NotNpy("its shape is too large");
            number = number * 10 + digit;
        }
        if (at_ == first) throw NotNpy("its shape holds what is no size");
        return number;
    }

    std::string_view text_;
    std::size_t at_ = 0;
};

struct Type {
    const char* descr;
    const char* name;
    std::size_t bytes;
};

/// The types that numpy writes on a little-endian machine; `O`, objects, are pickles and no type here.
constexpr Type types[] = {{"|b1", "bool", 1},  {"|u1", "uint8", 1},   {"|i1", "int8", 1},    {"<u2", "uint16", 2},
                          {"<i2", "int16", 2}, {"<u4", "uint32", 4},  {"<i4", "int32", 4},   {"<u8", "uint64", 8},
                          {"<i8", "int64", 8}, {"<f2", "float16", 2}, {"<f4", "float32", 4}, {"<f8", "float64", 8}};

const Type& type_of(const std::string& descr) {
    for (const Type& type : types) {
        if (descr == type.descr) return type;
    }
    throw NotNpy("its type '" + descr + "' is not one of numbers, little-endian");
}

/// Number of bytes of an array.
std::uint64_t bytes_of(const std::vector<std::int64_t>& shape, std::size_t item) {
    std::uint64_t bytes = item;
    for (const std::int64_t size : shape) {
        if (__builtin_mul_overflow(bytes, static_cast<std::uint64_t>(size), &bytes))
            throw NotNpy("its shape is too large");
    }
    return bytes;
}

/// Elements in Fortran order (the first index runs fastest) into C order.
Bytes transposed(ByteView data, const std::vector<std::int64_t>& shape, std::size_t item) {
    Bytes out(data.size);
    std::vector<std::size_t> stride(shape.size());  // of each index in the source, in elements
    std::size_t step = 1;
    for (std::size_t axis = 0; axis < shape.size(); ++axis) {
        stride[axis] = step;
        step *= static_cast<std::size_t>(shape[axis]);
    }
    std::vector<std::int64_t> index(shape.size());
    std::size_t from = 0;
    for (std::size_t to = 0; to < data.size; to += item) {
        std::copy_n(data.data + from * item, item, out.data() + to);
        for (std::size_t axis = shape.size(); axis-- > 0;) {
            from += stride[axis];
            if (++index[axis] < shape[axis]) break;
            from -= stride[axis] * static_cast<std::size_t>(shape[axis]);
            index[axis] = 0;
        }
    }
    return out;
}

}  // namespace

std::string shape_text(const std::vector<std::int64_t>& shape) {
    std::string text = "(";
    for (std::size_t axis = 0; axis < shape.size(); ++axis)
        text += (axis == 0 ? "" : ", ") + std::to_string(shape[axis]);
    return text + (shape.size() == 1 ? ",)" : ")");
}

Array parse_npy(ByteView file) {
    constexpr std::array<std::uint8_t, 6> magic{0x93, 'N', 'U', 'M', 'P', 'Y'};
    constexpr std::size_t max_header = 10'000;  // as numpy
    if (file.size < 10 || !std::equal(magic.begin(), magic.end(), file.data))
        throw NotNpy("it does not begin as an npy file");
    const int version = file.data[6];
    if (version < 1 || version > 3 || file.data[7] != 0) throw NotNpy("it is of an unknown version of npy");
    const std::size_t prefix = version == 1 ? 10 : 12;
    if (file.size < prefix) throw NotNpy("it ends inside its header");
    std::size_t length = file.data[8] | static_cast<std::size_t>(file.data[9]) << 8;
    if (version > 1)
        length |= static_cast<std::size_t>(file.data[10]) << 16 | static_cast<std::size_t>(file.data[11]) << 24;
    if (length > max_header)
        throw NotNpy("its header has " + std::to_string(length) + " bytes, more than " + std::to_string(max_header));
    if (length > file.size - prefix) throw NotNpy("it ends inside its header");

    HeaderText text({reinterpret_cast<const char*>(file.data) + prefix, length});
    std::optional<std::string> descr;
    std::optional<bool> is_fortran;
    std::optional<std::vector<std::int64_t>> shape;
    text.expect('{');
    while (!text.take('}')) {
        const std::string name = text.string();
        text.expect(':');
        if (name == "descr" && !descr) {
            descr = text.string();
        } else if (name == "fortran_order" && !is_fortran) {
            is_fortran = text.boolean();
        } else if (name == "shape" && !shape) {
            shape = text.sizes();
        } else {
            throw NotNpy("its header holds '" + name + "' where it must not");
        }
        if (text.take(',')) continue;
        text.expect('}');
        break;
    }
    text.expect_end();
    if (!descr || !is_fortran || !shape) throw NotNpy("its header lacks one of descr, fortran_order, shape");

    const Type& type = type_of(*descr);
    const std::uint64_t expected = bytes_of(*shape, type.bytes);
    const ByteView data(file.data + prefix + length, file.size - prefix - length);
    if (data.size != expected) {
        throw NotNpy("its elements have " + std::to_string(data.size) + " bytes, not the " + std::to_string(expected) +
                     " of its shape");
    }
    Array array{type.name, std::move(*shape), {}};
    array.data = *is_fortran ? transposed(data, array.shape, type.bytes) : Bytes(data.data, data.data + data.size);
    return array;
}

Array read_npy(ByteView file, const std::string& name) {
    try {
        return parse_npy(file);
    } catch (const NotNpy& error) {
        throw Error(ErrorKind::model, name + " is not an npy file (" + error.what() + ")");
    }
}

std::size_t Array::count() const noexcept {
    std::size_t product = 1;
    for (const std::int64_t size : shape) product *= static_cast<std::size_t>(size);
    return product;
}

}  // namespace itae
