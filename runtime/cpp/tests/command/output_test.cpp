#include "output.hpp"

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "temporary_folder.hpp"
#include "thrown.hpp"

using namespace itae::command;

namespace {

std::string content(const std::string& path) {
    std::ostringstream text;
    text << std::ifstream(path, std::ios::binary).rdbuf();
    return text.str();
}

void write_pair(const std::string& out, int rows) {
    PairWriter writer(out, 2);
    const float vector[] = {1, 2};
    writer.fail({"/r", "bad", ""}, "is empty");
    for (int row = 0; row < rows; ++row) writer.add({"/r", std::to_string(row), ""}, vector, std::nullopt);
    writer.publish();
}

std::size_t files_in(const TemporaryFolder& folder) {
    std::size_t count = 0;
    for ([[maybe_unused]] const auto& one : std::filesystem::directory_iterator(folder.path())) ++count;
    return count;
}

}  // namespace

TEST_CASE("the header is numpy's, of one size for any number of rows") {
    const std::string header = npy_header(7, 384);
    CHECK(header.size() == 128);
    CHECK(header.substr(0, 10) == std::string("\x93NUMPY\x01\x00v\x00", 10));
    CHECK(header.find("{'descr': '<f4', 'fortran_order': False, 'shape': (7, 384), }") == 10);
    CHECK(npy_header(1LL << 60, 384).size() == 128);
}

TEST_CASE("lines are JSON as Python writes it") {
    CHECK(line_of(3, "/r", "a \"b\"\n\\\xc3\xa9\xe2\x80\xa8.jpg", 2) ==
          "{\"row\": 3, \"root\": \"/r\", \"path\": \"a \\\"b\\\"\\n\\\\\xc3\xa9\\u2028.jpg\", \"label\": 2}\n");
    CHECK(line_of("/r", "p", "is empty") == "{\"root\": \"/r\", \"path\": \"p\", \"error\": \"is empty\"}\n");
}

TEST_CASE("a pair appears when it is whole, and takes an older one's place") {
    const TemporaryFolder folder;
    const std::string out = folder.at("x.npy");
    {
        PairWriter writer(out, 2);
        CHECK_FALSE(std::filesystem::exists(out));
    }
    CHECK(files_in(folder) == 0);  // given up: nothing is left
    write_pair(out, 1);
    write_pair(out, 3);
    CHECK(files_in(folder) == 2);
    CHECK(content(out).size() == 128 + 3 * 8);
    CHECK(content(folder.at("x.jsonl")).find("{\"row\": 2, ") != std::string::npos);
}

TEST_CASE("an exchange that fails puts the older pair back") {
    const TemporaryFolder folder;
    const std::string out = folder.at("x.npy");
    write_pair(out, 1);
    const std::string before = content(out) + content(folder.at("x.jsonl"));
    const WorkFolder work(out);
    std::ofstream(work.path() + "/x.npy") << "new";  // and no x.jsonl, which can't be moved then
    const auto error = thrown([&] { publish(out, {"x.npy", "x.jsonl"}, work.path()); });
    REQUIRE(error);
    CHECK(error->kind() == itae::ErrorKind::io);
    CHECK(content(out) + content(folder.at("x.jsonl")) == before);
    CHECK(files_in(folder) == 3);  // the work folder is there
}

TEST_CASE("a damaged plan is not followed") {
    const TemporaryFolder folder;
    const std::string out = folder.at("x.npy");
    const std::string plan =
        GENERATE("", "{}", "[]", "{\"seal\": \"../x.npy\"}",
                 R"({"seal": "x.npy", "older": ["../y"], "fresh": [], "had_seal": true, "host": "h",)"
                 R"( "process": 1, "token": "t"})");
    std::filesystem::create_directories(folder.path() / ".x.npy.exchange/older");
    folder.write(".x.npy.exchange/plan.json", plan);
    const auto error = thrown([&] { write_pair(out, 1); });
    REQUIRE(error);
    CHECK(std::string(error->what()).find("plan.json is damaged: move the files of") != std::string::npos);
}

TEST_CASE("what is no pair stays") {
    const TemporaryFolder folder;
    folder.write("x.jsonl", "mine");
    CHECK(thrown([&] { write_pair(folder.at("x.npy"), 1); })->kind() == itae::ErrorKind::io);
    folder.write("y.npy", "mine");
    CHECK(thrown([&] { write_pair(folder.at("y.npy"), 1); })->kind() == itae::ErrorKind::io);
    CHECK(thrown([&] { write_pair(folder.at("y.npz"), 1); })->kind() == itae::ErrorKind::usage);
    CHECK(thrown([&] { write_pair(folder.at("none/y.npy"), 1); })->kind() == itae::ErrorKind::io);
    CHECK(hidden_name("x.npy", "work") == ".x.npy.work");
    CHECK(hidden_name(std::string(61, 'x'), "work").size() == 1 + 32 + 5);
}
