#include "itae/version.hpp"
