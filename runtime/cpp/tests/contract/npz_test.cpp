#include <catch2/catch.hpp>
#include <cstring>

#include "contract/npz.hpp"
#include "itae/golden.hpp"
#include "temporary_folder.hpp"
#include "thrown.hpp"

using Catch::Contains;
using itae::Array;
using itae::Bytes;

namespace {

Bytes npy(const std::string& header, const std::string& data) {
    std::string text = std::string("\x93NUMPY\x01\x00", 8);
    text += static_cast<char>(header.size() & 255);
    text += static_cast<char>(header.size() >> 8);
    text += header + data;
    return {text.begin(), text.end()};
}

std::string refused(const Bytes& file) {
    const auto error = thrown([&] { itae::read_npy(file, "x.npy"); });
    REQUIRE(error);
    CHECK(error->kind() == itae::ErrorKind::model);
    return error->what();
}

/// The base's golden sample of tests/conformance.
Bytes golden_sample() { return itae::read_file(ITAE_ROOT "/tests/conformance/cases/base/m.onnx.parity.npz", 1 << 20); }

}  // namespace

TEST_CASE("an npy file of each form of header is read") {
    for (const std::string header : {"{'descr': '|u1', 'fortran_order': False, 'shape': (2, 3), }",
                                     "{'shape': (2, 3),'fortran_order':False,'descr':'|u1'}  \n",
                                     "{\"descr\": \"|u1\", 'fortran_order': False, 'shape': (2, 3,)}"}) {
        const Array array = itae::read_npy(npy(header, "abcdef"), "x.npy");
        CHECK(array.dtype == "uint8");
        CHECK(array.shape == std::vector<std::int64_t>{2, 3});
        CHECK(std::memcmp(array.data.data(), "abcdef", 6) == 0);
    }
    const Array scalar =
        itae::read_npy(npy("{'descr': '<f8', 'fortran_order': False, 'shape': ()}", "12345678"), "x.npy");
    CHECK(scalar.shape.empty());
    CHECK(scalar.count() == 1);
    const Array none = itae::read_npy(npy("{'descr': '<f4', 'fortran_order': True, 'shape': (0, 5)}", ""), "x.npy");
    CHECK(none.count() == 0);
}

TEST_CASE("an array in Fortran order is turned into C order") {
    const Array array =
        itae::read_npy(npy("{'descr': '|u1', 'fortran_order': True, 'shape': (2, 3)}", "adbecf"), "x.npy");
    CHECK(std::string(array.data.begin(), array.data.end()) == "abcdef");
    // a[i][j][k] = 100 i + 10 j + k, of shape (2, 3, 2): the first index runs fastest in the file.
    const std::string data = {0, 100, 10, 110, 20, 120, 1, 101, 11, 111, 21, 121};
    const Array deep =
        itae::read_npy(npy("{'descr': '|u1', 'fortran_order': True, 'shape': (2, 3, 2)}", data), "x.npy");
    CHECK(deep.data == Bytes{0, 1, 10, 11, 20, 21, 100, 101, 110, 111, 120, 121});
}

TEST_CASE("an npy file that is wrong is refused in words of its own") {
    const std::string rest = "'fortran_order': False, 'shape': (2,)}";
    CHECK_THAT(refused({}), Contains("x.npy is not an npy file (it does not begin as an npy file)"));
    CHECK_THAT(refused(npy("{'descr': '|u1', " + rest, "a")),
               Contains("its elements have 1 bytes, not the 2 of its shape"));
    CHECK_THAT(refused(npy("{'descr': '|u1', " + rest, "abc")), Contains("its elements have 3 bytes, not the 2"));
    CHECK_THAT(refused(npy("{'descr': '>f4', " + rest, "")), Contains("its type '>f4' is not one of numbers"));
    CHECK_THAT(refused(npy("{'descr': '|O', " + rest, "")), Contains("its type '|O' is not one of numbers"));
    CHECK_THAT(refused(npy("{'descr': [('a', '<f4')], " + rest, "")), Contains("its header lacks a string"));
    CHECK_THAT(refused(npy("{'descr': '|u1', 'descr': '|u1', " + rest, "")), Contains("'descr' where it must not"));
    CHECK_THAT(refused(npy("{'descr': '|u1', " + rest + " x", "ab")), Contains("goes on behind its end"));
    CHECK_THAT(refused(npy("{'descr': '|u1', 'fortran_order': 0, 'shape': (2,)}", "ab")),
               Contains("neither True nor False"));
    CHECK_THAT(refused(npy("{'descr': '|u1', 'fortran_order': False, 'shape': (2)}", "ab")), Contains("no tuple"));
    CHECK_THAT(refused(npy("{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999999999,)}", "")),
               Contains("too large"));
    CHECK_THAT(refused(npy("{'descr': '<f8', 'fortran_order': False, 'shape': (4294967296, 4294967296)}", "")),
               Contains("too large"));
    std::string many = "(";
    for (int axis = 0; axis < 40; ++axis) many += "1, ";
    CHECK_THAT(refused(npy("{'descr': '|u1', 'fortran_order': False, 'shape': " + many + ")}", "a")),
               Contains("40 dimensions"));
}

TEST_CASE("what an archive says of its sizes is not believed") {
    Bytes file = golden_sample();
    const std::string mark("PK\x01\x02", 4);
    const auto entry = std::search(file.begin(), file.end(), mark.begin(), mark.end());
    REQUIRE(entry != file.end());
    const auto refused_with = [&](std::uint32_t size) {
        std::memcpy(&*entry + 24, &size, 4);
        const auto error = thrown([&] { itae::read_npz(file, {"input"}, 2u << 30, "x.npz"); });
        REQUIRE(error);
        return std::string(error->what());
    };
    CHECK_THAT(refused_with(1u << 30), Contains("larger than the archive can hold"));
    CHECK_THAT(refused_with(0xFFFFFFFE), Contains("it unpacks to more than 2147483648 bytes"));
    CHECK_THAT(refused_with(100), Contains("x.npz is not an npz file of arrays ("));
}

TEST_CASE("arrays that nobody asks for are not looked at, those that are missing are left out") {
    const auto found = itae::read_npz(golden_sample(), {"embedding", "nothing"}, 1 << 20, "x.npz");
    REQUIRE(found.size() == 1);
    CHECK(found.at("embedding").shape == std::vector<std::int64_t>{4, 6});
}
