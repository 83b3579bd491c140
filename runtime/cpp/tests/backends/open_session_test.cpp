#include <catch2/catch.hpp>

#include "backends/backends.hpp"
#include "thrown.hpp"

TEST_CASE("a device is the CPU or a GPU by its number") {
    using itae::parse_device;
    CHECK_FALSE(parse_device("auto", false).is_gpu);
    CHECK(parse_device("auto", true).is_gpu);
    CHECK_FALSE(parse_device("cpu", false).is_gpu);
    CHECK(parse_device("cuda", false).number == 0);
    CHECK(parse_device("cuda:3", true).number == 3);
    CHECK(thrown([] { parse_device("cpu", true); })->kind() == itae::ErrorKind::usage);
    const std::string bad = GENERATE("gpu", "cuda:", "cuda:-1", "cuda:-0", "cuda:1x", "cuda:99999999999", "");
    CHECK(thrown([&] { parse_device(bad, false); })->what() ==
          "no device `" + bad + "`: give cpu, cuda or cuda:N, N from 0 on");
}
