#include "backends/onnx_references.hpp"

#include <algorithm>
#include <catch2/catch.hpp>
#include <string>

#include "thrown.hpp"

namespace {

/// A field of protobuf whose value is bytes.
std::string bytes(int field, const std::string& content) {
    return std::string{static_cast<char>(field << 3 | 2 | (field > 15 ? 0x80 : 0))} +
           (field > 15 ? std::string{static_cast<char>(field >> 4)} : "") + static_cast<char>(content.size()) + content;
}

/// What is found, in pieces of every size alike.
bool refers(const std::string& content) {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(content.data());
    const auto found = [&](std::size_t step) {
        itae::ReferenceFinder finder(content.size());
        bool is_found = false;
        for (std::size_t at = 0; at < content.size(); at += step)
            is_found = finder.add({bytes + at, std::min(step, content.size() - at)});
        return is_found;
    };
    const bool at_once = found(std::max<std::size_t>(content.size(), 1));
    for (const std::size_t step : {1, 2, 3}) CHECK(found(step) == at_once);
    return at_once;
}

const std::string external = bytes(13, "where");
const std::string located{"\x70\x01"};  // field 14, a number: 1

}  // namespace

TEST_CASE("a tensor with its values in another file is found wherever it lies") {
    const std::string by_place = GENERATE_COPY(external, located);
    const std::string initializer = bytes(5, by_place);
    CHECK(refers(bytes(7, initializer)));                                        // graph, initializer
    CHECK(refers(bytes(7, bytes(15, bytes(1, by_place)))));                      // sparse initializer
    CHECK(refers(bytes(7, bytes(1, bytes(5, bytes(5, by_place))))));             // node, attribute, tensor
    CHECK(refers(bytes(7, bytes(1, bytes(5, bytes(6, initializer))))));          // a node's own graph
    CHECK(refers(bytes(7, bytes(1, bytes(5, bytes(22, bytes(1, by_place)))))));  // sparse tensor of an attribute
}

TEST_CASE("what holds its values itself refers to nothing") {
    CHECK_FALSE(refers(""));
    CHECK_FALSE(refers(bytes(7, bytes(5, bytes(9, "values")))));
    CHECK_FALSE(refers(bytes(7, bytes(5, std::string("\x70\x00", 2)))));  // data_location 0: in this file
    CHECK_FALSE(refers(bytes(2, external)));                              // a text field of the model
}

TEST_CASE("bytes that are no ONNX file are refused") {
    const std::string bad = GENERATE(as<std::string>{}, "\x3b",
                                     "\x3a\x05"
                                     "ab",
                                     std::string(11, '\xff'),
                                     "\x39"
                                     "abc",
                                     std::string("\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f"), "\x08");
    const auto error = thrown([&] { refers(bad); });
    REQUIRE(error);
    CHECK(error->kind() == itae::ErrorKind::model);
    CHECK(error->what() == std::string("it is no ONNX file, or was cut short"));
}

TEST_CASE("what is nested deeper than protobuf reads is refused") {
    std::string content;
    for (int depth = 0; depth < 30; ++depth) content = bytes(6, bytes(1, bytes(5, content)));  // subgraphs of nodes
    const auto all = bytes(7, content);
    CHECK(thrown([&] { refers(all); }));
}
