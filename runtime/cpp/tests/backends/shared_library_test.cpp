#include "backends/shared_library.hpp"

#include <catch2/catch.hpp>

#include "temporary_folder.hpp"

using itae::library_candidates;
using Paths = std::vector<std::string>;

TEST_CASE("a library is looked for by option, variable, folders and loader, in this order") {
    const TemporaryFolder folder;
    const Paths names{"libonnxruntime.so.1", "libonnxruntime.so"};
    CHECK(library_candidates(names, "/a/libort.so", "/b/libort.so", {"/program"}) == Paths{"/a/libort.so"});
    CHECK(library_candidates(names, "", "/b/libort.so", {"/program"}) == Paths{"/b/libort.so"});
    CHECK(library_candidates(names, "libort.so", "", {}) == Paths{"./libort.so"});
    CHECK(library_candidates(names, folder.path().string(), "", {}) ==
          Paths{folder.at("libonnxruntime.so.1"), folder.at("libonnxruntime.so")});
    CHECK(library_candidates(names, "", "", {"/program", ""}) == Paths{"/program/libonnxruntime.so.1",
                                                                       "/program/libonnxruntime.so",
                                                                       "libonnxruntime.so.1", "libonnxruntime.so"});
}
