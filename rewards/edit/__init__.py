"""Edit: is what the instruction asks for done, and is all the rest of the reference kept?"""
