"""What the tests of class folders share: the check, without its bar."""

from lesa_nb.data.verify import verify_image_folder


def look(folder, **options):
    "The report of a folder."
    return verify_image_folder(folder, progress=False, **options)
