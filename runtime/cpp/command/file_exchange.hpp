#pragma once

#include <string>
#include <vector>

/// Two files that belong together take the place of older ones: both or none, by the steps of
/// runtime/contract/file_set.py, so that either program undoes what a killed run of the other left half done.
namespace itae::command {

/// A descriptor that is closed at the end; -1 is none.
class Descriptor {
  public:
    explicit Descriptor(int number = -1) noexcept : number_(number) {}
    Descriptor(Descriptor&& other) noexcept;
    Descriptor& operator=(Descriptor&& other) noexcept;
    ~Descriptor();
    int get() const noexcept { return number_; }
    explicit operator bool() const noexcept { return number_ >= 0; }

  private:
    int number_;
};

/// A folder beside a file for results that are moved out of it; it goes with this object. Folders that killed
/// processes of this host left there are removed first.
class WorkFolder {
  public:
    /// @throws Error io: the folder of `beside` is missing or can't be written.
    explicit WorkFolder(const std::string& beside);
    ~WorkFolder();
    WorkFolder(const WorkFolder&) = delete;
    WorkFolder& operator=(const WorkFolder&) = delete;
    const std::string& path() const noexcept { return path_; }

  private:
    std::string path_;
    Descriptor lock_;
};

/// `.NAME.SUFFIX`, or a hash in the place of a long name, so that the result is a legal name wherever NAME is.
std::string hidden_name(const std::string& name, const std::string& suffix);

/// Make a file's content durable. @throws Error io: it may not be on the disk.
void sync_file(int descriptor, const std::string& path);

/// Put finished files in their places, all of them or none.
///
/// @param seal the path of the file without which no reader believes the others.
/// @param names of the files beside it, the seal among them, in the order in which they go there but for the seal.
/// @param work the folder that the finished files lie in, under the same names; on the same file system.
/// @throws Error io: a file can't be moved, or another process exchanges this set; what was there is as before.
void publish(const std::string& seal, const std::vector<std::string>& names, const std::string& work);

/// Undo what runs that were killed have left half done at `seal`; what can't be undone now stays as it is.
void recover(const std::string& seal);

/// The one-line error for a failed write.
[[noreturn]] void cannot_write(const std::string& path, int number);

}  // namespace itae::command
