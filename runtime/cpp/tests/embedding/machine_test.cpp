#include "embedding/machine.hpp"

#include <catch2/catch.hpp>
#include <filesystem>

#include "temporary_folder.hpp"

namespace {

/// A machine whose files are those of a test.
class FakeMachine {
  public:
    void write(const std::string& name, const std::string& content) const {
        std::filesystem::create_directories((folder_.path() / name).parent_path());
        folder_.write(name, content);
    }
    std::optional<int> quota() const { return itae::cpu_quota(folder_.path().string()); }

  private:
    TemporaryFolder folder_;
};

}  // namespace

TEST_CASE("the smallest quota of the groups above a process counts") {
    FakeMachine machine;
    CHECK_FALSE(machine.quota());
    machine.write("proc/self/cgroup", "0::/docker/1f\n");
    machine.write("proc/self/mountinfo", "32 31 0:29 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
    CHECK_FALSE(machine.quota());
    machine.write("sys/fs/cgroup/docker/1f/cpu.max", "max 100000\n");
    CHECK_FALSE(machine.quota());
    machine.write("sys/fs/cgroup/docker/cpu.max", "350000 100000\n");
    CHECK(machine.quota() == 4);
    machine.write("sys/fs/cgroup/docker/1f/cpu.max", "50000 100000\n");
    CHECK(machine.quota() == 1);
}

TEST_CASE("a quota of version 1 is read, its mount below the container's own group") {
    FakeMachine machine;
    machine.write("proc/self/cgroup", "4:cpu,cpuacct:/docker/1f\n3:memory:/x\n");
    machine.write("proc/self/mountinfo",
                  "30 31 0:29 /docker/1f /sys/fs/cgroup/cpu\\040here rw - cgroup cgroup rw,cpu,cpuacct\n");
    machine.write("sys/fs/cgroup/cpu here/cpu.cfs_quota_us", "150000\n");
    machine.write("sys/fs/cgroup/cpu here/cpu.cfs_period_us", "100000\n");
    CHECK(machine.quota() == 2);
    machine.write("sys/fs/cgroup/cpu here/cpu.cfs_quota_us", "-1\n");
    CHECK_FALSE(machine.quota());
}

TEST_CASE("this machine has cores") { CHECK(itae::usable_cores() >= 1); }
